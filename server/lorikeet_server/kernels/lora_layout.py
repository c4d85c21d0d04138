"""What all adapters of a model have in common: the widths of the matrices, and how a backend wants them
stored.

An adapter is brought into this form once, when it is staged, off the token path; then filling a slot copies
a few kilobytes of addresses and no matrix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

Elements = TypeVar("Elements", Tensor, npt.NDArray[Any])

dtype_codes = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class LoraModule(NamedTuple):
    """One fused linear: its input width, and the output widths of its slices in column order, which are the
    fused projections: q, k, v or gate, up."""

    in_features: int
    out_features: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoraLayout:
    """A is always [rank, in], row by row. B is [out, rank], in panels of some outputs, each rank by rank, the
    last as narrow as it comes. With panels of one output it lies row by row too."""

    rank_unit: int = 1  # ranks are padded with zeros to a multiple of it
    panel: int = 1  # outputs

    def b_parts(self, memory: Elements, rank: int) -> Iterator[tuple[slice, Elements]]:
        """B where it lies in [out * rank] elements: outputs, and the view [panels, outputs of a panel, rank]
        of them, of all full panels and of the last if that is narrower."""
        out = memory.shape[0] // rank
        full = out - out % self.panel
        for outputs, width in ((slice(0, full), self.panel), (slice(full, out), out - full)):
            if outputs.start < outputs.stop:
                part = memory[outputs.start * rank : outputs.stop * rank]
                yield outputs, part.reshape(-1, rank, width).swapaxes(1, 2)


PLAIN = LoraLayout()


@dataclass(frozen=True, slots=True)
class LoraForm:
    """The slices of a model's modules, one after the other, and the form of their A and B."""

    inputs: tuple[int, ...]  # [slices], widths
    outputs: tuple[int, ...]
    dtype: torch.dtype
    layout: LoraLayout = PLAIN

    def __post_init__(self) -> None:
        if self.dtype not in dtype_codes:
            raise TypeError(f"adapters are float32, float16 or bfloat16, not {self.dtype}")

    @classmethod
    def of(cls, modules: Sequence[LoraModule], dtype: torch.dtype, layout: LoraLayout = PLAIN) -> Self:
        """Raises `TypeError` for a dtype that no kernel reads."""
        inputs = tuple(width for width, outs in modules for _ in outs)
        return cls(inputs, tuple(out for _, outs in modules for out in outs), dtype, layout)
