"""How a backend wants the matrices of an adapter stored.

An adapter is brought into this form once, when it is staged, off the token path; then filling a slot copies
nothing.
"""

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def rank_major(b: Tensor) -> Tensor:
    """The same [out, rank] matrix, stored rank by rank: the order that CPU kernels stream."""
    return b.t().contiguous().t()


@dataclass(frozen=True, slots=True)
class LoraLayout:
    """A is always [rank, in], row by row. B is [out, rank], by rows or by columns."""

    rank_unit: int  # ranks are padded with zeros to a multiple of it
    b_by_rank: bool  # B is stored rank by rank, as a CPU streams it; else output by output

    def padded(self, rank: int) -> int:
        """The rank that is stored."""
        return -(-rank // self.rank_unit) * self.rank_unit

    def place(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """`a` [rank, in] and `b` [out, rank] in this layout; themselves if they are in it already."""
        if missing := self.padded(a.shape[0]) - a.shape[0]:
            a, b = F.pad(a, (0, 0, 0, missing)), F.pad(b, (0, missing))
        return a.contiguous(), rank_major(b) if self.b_by_rank else b.contiguous()


RANK_MAJOR = LoraLayout(rank_unit=1, b_by_rank=True)
