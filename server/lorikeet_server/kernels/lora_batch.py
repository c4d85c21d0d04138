"""Which rows of a step belong to which adapter slot: built once per step, read by every module and layer.

Rows of a slot lie together: a backend multiplies each adapter with all of its rows at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

RowSlots = Tensor | npt.NDArray[np.int32] | Sequence[int]


class LoraBatch(Protocol):
    """The rows of a step by adapter, in the form of one backend; only that backend can read it."""

    @property
    def num_rows(self) -> int:
        """T, rows of the step with and without an adapter."""


@dataclass(frozen=True, slots=True)
class LoraSegments:
    """The form of the CPU backends: the rows of one adapter are a segment, rows of the base model are in
    none."""

    buffer: Tensor  # i32: the three arrays below, one after the other
    permutation: Tensor  # i32 [N], rows in segment order; within a segment ascending
    segment_starts: Tensor  # i32 [segments + 1], offsets into permutation
    segment_slots: Tensor  # i32 [segments], distinct, in the order of their first rows
    num_rows: int  # T, rows of the step with and without an adapter

    @property
    def num_segments(self) -> int:
        """The number of distinct adapters in the step."""
        return self.segment_slots.shape[0]

    @staticmethod
    def build(row_slots: RowSlots) -> "LoraSegments":
        """Gathers the rows of a step by `row_slots` [T], the adapter slot per row, negative for none. The
        order of the step is kept where it can be: a thread then finds the rows that it wrote in its cache."""
        slots = np.asarray(row_slots, dtype=np.int32)
        used = np.flatnonzero(slots >= 0).astype(np.int32)
        distinct, firsts, segment = np.unique(slots[used], return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        permutation = used[np.argsort(firsts[segment], kind="stable")]
        ends = np.bincount(segment, minlength=len(distinct))[order].cumsum()
        rows, segments = len(used), len(distinct)
        parts = (permutation, [0], ends, distinct[order])
        buffer = torch.from_numpy(np.concatenate(parts).astype(np.int32))
        return LoraSegments(
            buffer=buffer,
            permutation=buffer[:rows],
            segment_starts=buffer[rows : rows + segments + 1],
            segment_slots=buffer[rows + segments + 1 :],
            num_rows=len(slots),
        )
