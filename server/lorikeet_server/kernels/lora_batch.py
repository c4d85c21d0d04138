"""Which rows of a step belong to which adapter slot: built once per step, read by every module and layer.

The form suits a CPU loop and a CUDA grid alike: rows sorted by slot, in one buffer that a single copy can
move.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoraBatch:
    """Rows of one adapter form a segment. Rows of the base model (slot -1) are in none."""

    buffer: Tensor  # i32: the three arrays below, one after the other
    permutation: Tensor  # i32 [N], rows in segment order; within a segment ascending
    segment_starts: Tensor  # i32 [segments + 1], offsets into permutation
    segment_slots: Tensor  # i32 [segments], ascending and distinct
    num_rows: int  # T, rows of the step with and without an adapter

    @property
    def num_segments(self) -> int:
        """The number of distinct adapters in the step."""
        return self.segment_slots.shape[0]

    @staticmethod
    def build(row_slots: Tensor | Sequence[int]) -> "LoraBatch":
        """Sort the rows of a step by `row_slots` [T], the adapter slot per row, negative for none."""
        slots = np.asarray(row_slots, dtype=np.int32)
        order = np.argsort(slots, kind="stable").astype(np.int32)
        order = order[np.searchsorted(slots[order], 0) :]
        distinct, starts = np.unique(slots[order], return_index=True)
        rows, segments = len(order), len(distinct)
        buffer = torch.from_numpy(np.concatenate([order, starts, [rows], distinct]).astype(np.int32))
        return LoraBatch(
            buffer=buffer,
            permutation=buffer[:rows],
            segment_starts=buffer[rows : rows + segments + 1],
            segment_slots=buffer[rows + segments + 1 :],
            num_rows=len(slots),
        )
