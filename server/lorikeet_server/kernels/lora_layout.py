"""What all adapters of a model have in common: the widths of the matrices, and how a backend wants them
stored.

An adapter is brought into this form once, when it is staged, off the token path; then filling a slot copies
a few kilobytes of addresses and no matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch

dtype_codes = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class LoraModule(NamedTuple):
    """One fused linear: its input width, and the output widths of its slices in column order, which are the
    fused projections: q, k, v or gate, up."""

    in_features: int
    out_features: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoraLayout:
    """A is always [rank, in], row by row. B is [out, rank], by rows or by columns."""

    rank_unit: int  # ranks are padded with zeros to a multiple of it
    b_by_rank: bool  # B is stored rank by rank, as a CPU streams it; else output by output


RANK_MAJOR = LoraLayout(rank_unit=1, b_by_rank=True)


@dataclass(frozen=True, slots=True)
class LoraForm:
    """The slices of a model's modules, one after the other, and the form of their A and B."""

    inputs: tuple[int, ...]  # [slices], widths
    outputs: tuple[int, ...]
    dtype: torch.dtype
    layout: LoraLayout = RANK_MAJOR

    def __post_init__(self) -> None:
        if self.dtype not in dtype_codes:
            raise TypeError(f"adapters are float32, float16 or bfloat16, not {self.dtype}")

    @classmethod
    def of(cls, modules: Sequence[LoraModule], dtype: torch.dtype, layout: LoraLayout = RANK_MAJOR) -> Self:
        """Raises `TypeError` for a dtype that no kernel reads."""
        inputs = tuple(width for width, outs in modules for _ in outs)
        return cls(inputs, tuple(out for _, outs in modules for out in outs), dtype, layout)
