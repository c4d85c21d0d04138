"""Where tensors come from: one interface over every file format.

A model loader asks for tensors by their Hugging Face names, one at a time and, with tensor parallelism, one
slice at a time. It does not learn whether they were read from safetensors or dequantised from a GGUF file.
This module knows no architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lorikeet_server.weights.error import WeightsError

# `prepare` reads headers before every start: without torch, that takes a third of a second and not two.
if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Slice:
    """The half-open range `start..stop` of dimension `dim`; the other dimensions are whole."""

    dim: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.dim not in (0, 1) or not 0 <= self.start <= self.stop:
            raise ValueError(f"not a slice of a tensor: dim {self.dim}, {self.start}..{self.stop}")

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises WeightsError if the tensor `name` of this shape has no such slice."""
        if self.dim >= len(shape) or self.stop > shape[self.dim]:
            raise WeightsError(
                f"{name} of shape {shape} has no slice {self.start}..{self.stop} of dimension {self.dim}"
            )


class WeightSource(Protocol):
    """Read-only tensors of one model, in Hugging Face names and layout (`[out, in]` for a linear)."""

    @property
    def digest(self) -> str:
        """Identity of the weights: lower-case sha256, the same for the same files wherever they lie."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json, with the names that transformers uses."""
        ...

    @property
    def quantised(self) -> bool:
        """Whether matrices are stored in far fewer bits than the 16 of a float."""
        ...

    def names(self) -> list[str]:
        """The tensors, sorted. Where config says `tie_word_embeddings`, one of the two may be missing."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's shape, without reading it. Raises WeightsError if there is no such tensor."""
        ...

    def load(self, name: str, part: Slice | None = None) -> torch.Tensor:
        """Reads a tensor, or a slice of it, to host memory: contiguous, the caller's own, stored dtype."""
        ...
