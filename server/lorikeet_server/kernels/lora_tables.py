"""Which adapter is in which slot of a model, at addresses that never change, and the rows of a step that
refer to slots.

The tables are the kernels' side of adapter residency: whoever moves an adapter into a slot calls `put`, and
the kernels see it on their next call.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from lorikeet_server.device.base import Parcel
from lorikeet_server.kernels.lora_adapter import ENTRY, Entries, LoraAdapter, LoraMatrices
from lorikeet_server.kernels.lora_batch import LoraBatch, LoraSegments, RowSlots
from lorikeet_server.kernels.lora_layout import PLAIN, LoraForm, LoraLayout, LoraModule


class LoraBatcher(Protocol):
    """Sorts the rows of one step by adapter."""

    def __call__(self, row_slots: RowSlots, most: int | None = None) -> LoraBatch:
        """`row_slots` [T]: the adapter slot of each row, negative for none. With `most`, ops on the batch may
        be captured, and are good for every other batch of as many rows, with the same `most`, made at the
        same place of its parcel; none of them has more adapters."""


class LoraTable:
    """The slots of one module, a part of the model's tables."""

    def __init__(self, of: "LoraTables", module: LoraModule, first: int) -> None:
        """`first`: the module's first slice among those of the model."""
        self.in_features, self.out_features = module
        self.columns = np.array(self.out_features, np.int32)
        self.entries = of.entries[:, first : first + len(self.columns)]  # `ENTRY` [slots, slices]
        self.dtype = of.form.dtype
        self.of, self.first = of, first

    def get(self, slot: int, slice_index: int) -> LoraMatrices | None:
        """What the adapter in the slot does to a slice; None if it leaves it alone, or there is none."""
        adapter = self.of.held[slot]
        return None if adapter is None else adapter.get(self.first + slice_index)


class LoraTables:
    """One table for each module, in the order of the modules, which the kernels read where it is written.

    All entries of a slot lie together, so that filling it is one copy.
    """

    def __init__(
        self,
        modules: Sequence[LoraModule],
        num_slots: int,
        dtype: torch.dtype,
        layout: LoraLayout = PLAIN,
    ) -> None:
        """For adapters that are staged in this dtype and layout."""
        self.form = LoraForm.of(modules, dtype, layout)
        self.entries: Entries = np.zeros((num_slots, len(self.form.inputs)), ENTRY)
        self.held: list[LoraAdapter | None] = [None] * num_slots
        firsts = np.cumsum([0, *(len(module.out_features) for module in modules)])
        self.tables = tuple(
            LoraTable(self, module, int(first)) for module, first in zip(modules, firsts, strict=False)
        )

    def put(self, slot: int, adapter: LoraAdapter) -> None:
        """Puts an adapter into a slot, in place of what was there, and keeps it alive until it is cleared.
        Raises `ValueError`."""
        self._check(slot, adapter)
        self.entries[slot] = adapter.entries
        self.held[slot] = adapter

    def clear(self, slot: int) -> None:
        """Empties a slot, which may be empty. Raises `ValueError`."""
        self._check_slot(slot)
        self.entries[slot] = 0
        self.held[slot] = None

    def commit(self) -> None:
        """Lets the kernels see what was put and cleared; to be called after the moves of a step, before its
        rows are batched. Waits for nothing."""

    def batcher(self, parcel: Parcel | None = None) -> LoraBatcher:
        """For batches that are good from when `parcel` has been sent until it is again. Without one, a batch
        is sent as it is made."""

        def build(row_slots: RowSlots, most: int | None = None) -> LoraBatch:
            return LoraSegments.build(row_slots)

        return build

    def _check(self, slot: int, adapter: LoraAdapter) -> None:
        self._check_slot(slot)
        if adapter.form != self.form:
            mine, given = ((form.dtype, form.layout, len(form.inputs)) for form in (self.form, adapter.form))
            raise ValueError(f"the tables hold adapters of {mine}, the widths of the model; not of {given}")

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < len(self.held):
            raise ValueError(f"adapter slot {slot} is outside 0..{len(self.held) - 1}")
