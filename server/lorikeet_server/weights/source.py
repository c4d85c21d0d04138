"""Where tensors come from: one interface over every file format.

A model loader asks for tensors by their Hugging Face names, one at a time and, with tensor parallelism, one
slice at a time. It does not learn whether they were read from safetensors or dequantised from a GGUF file.
This module knows no architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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

    @classmethod
    def of_rank(cls, dim: int, size: int, rank: int, world_size: int) -> Slice:
        """The share of `rank` when `size` is divided evenly over `world_size` ranks."""
        if size % world_size:
            raise WeightsError(
                f"a dimension of {size} does not divide over {world_size} shards; use another --num-shard"
            )
        share = size // world_size
        return cls(dim, rank * share, (rank + 1) * share)


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

    def names(self) -> list[str]:
        """The tensors, sorted. Where config says `tie_word_embeddings`, one of the two may be missing."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's shape, without reading it. Raises WeightsError if there is no such tensor."""
        ...

    def load(self, name: str, part: Slice | None = None) -> torch.Tensor:
        """Reads a tensor, or a slice of it, to host memory: contiguous, the caller's own, stored dtype."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load has come. `total` counts each of the source's tensors once, in elements."""

    done: int
    total: int


class ReportingSource:
    """A source that tells `report` after each tensor how much has been read; a slice counts as its size."""

    def __init__(self, inner: WeightSource, report: Callable[[Progress], None], share: int = 1) -> None:
        """`share`: over how many ranks the weights are divided, so that a rank's own part counts as the
        whole."""
        self._inner = inner
        self._report = report
        self._total = sum(_elements(inner.shape(name)) for name in inner.names()) // share
        self._done = 0

    @property
    def digest(self) -> str:
        return self._inner.digest

    @property
    def config(self) -> dict[str, Any]:
        return self._inner.config

    def names(self) -> list[str]:
        return self._inner.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._inner.shape(name)

    def load(self, name: str, part: Slice | None = None) -> torch.Tensor:
        tensor = self._inner.load(name, part)
        self._done = min(self._done + tensor.numel(), self._total)
        self._report(Progress(self._done, self._total))
        return tensor


def open_source(path: str | Path) -> WeightSource:
    """Opens the weights at `path`: a `.gguf` file, or a directory with config.json and safetensors files.

    Reads headers only. Raises WeightsError with one line that names the path.
    """
    # Imported here, so that a safetensors model needs no gguf package and the formats can import this module.
    path = Path(path)
    if path.suffix == ".gguf":
        from lorikeet_server.weights.gguf import GgufSource

        return GgufSource(path)
    from lorikeet_server.weights.safetensors import SafetensorsSource

    return SafetensorsSource(path)


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
