"""A backend whose adapters are read from device memory only, as CUDA's are: what captured work can replay."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorikeet_server.device.base import Parcel
from lorikeet_server.kernels import AttentionShape, LoraBatch, LoraModule, LoraTable, LoraTables
from lorikeet_server.kernels.lora_batch import RowSlots
from lorikeet_server.kernels.lora_tables import LoraBatcher
from lorikeet_server.kernels.reference.backend import ReferenceKernels

RANK = 16


@dataclass(frozen=True, slots=True)
class Rows:
    """The adapter slot of each row."""

    slots: Tensor

    @property
    def num_rows(self) -> int:
        return self.slots.shape[0]


class GatherTables(LoraTables):
    """All slots of a slice as one tensor; the last, -1, is of rows without an adapter and stays zero."""

    def __init__(self, modules: Sequence[LoraModule], num_slots: int, dtype: torch.dtype) -> None:
        super().__init__(modules, num_slots, dtype)
        self.num_slots = num_slots
        self.stacked = {
            table: [
                (torch.zeros(num_slots + 1, RANK, table.in_features), torch.zeros(num_slots + 1, out, RANK))
                for out in table.out_features
            ]
            for table in self.tables
        }

    def commit(self) -> None:
        for table, slices in self.stacked.items():
            for index, (a, b) in enumerate(slices):
                for slot in range(self.num_slots):
                    a[slot], b[slot] = 0, 0
                    if (entry := table.get(slot, index)) is not None:
                        a[slot, : entry[0].shape[0]] = entry[0]
                        b[slot, :, : entry[0].shape[0]] = entry[1] * entry[2]

    def batcher(self, parcel: Parcel | None = None) -> LoraBatcher:
        assert parcel is not None

        def batch(row_slots: RowSlots, most: int | None = None) -> LoraBatch:
            return Rows(parcel.add(np.asarray(row_slots, np.int64)))

        return batch


class GatherKernels(ReferenceKernels):
    def captures(self, shapes: Sequence[AttentionShape]) -> bool:
        return True

    def lora_tables(
        self, modules: Sequence[LoraModule], num_slots: int, max_rows: int, max_rank: int, dtype: torch.dtype
    ) -> LoraTables:
        self.stacked = GatherTables(modules, num_slots, dtype)
        return self.stacked

    def lora(self, y: Tensor, x: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        assert isinstance(batch, Rows)
        first = 0
        for (a, b), out in zip(self.stacked.stacked[table], table.out_features, strict=True):
            low = torch.einsum("ti,tri->tr", x, a[batch.slots])
            y[:, first : first + out] += torch.einsum("tr,tor->to", low, b[batch.slots])
            first += out
