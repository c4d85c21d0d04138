"""The adapter tables of a whole model on a device: one buffer at an address that never changes.

All entries of a slot lie together, so filling it moves only its own few kilobytes, however many slots there
are. Captured graphs read the buffer, and so replay for every mix of adapters.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from lorikeet_server.config import MAX_LORA_RANK
from lorikeet_server.device.base import Parcel
from lorikeet_server.device.parcel import Singly
from lorikeet_server.device.staging import Staging
from lorikeet_server.kernels.cuda import abi
from lorikeet_server.kernels.cuda.tiles import Tiler
from lorikeet_server.kernels.lora_adapter import ENTRY, LoraAdapter
from lorikeet_server.kernels.lora_layout import LoraLayout, LoraModule
from lorikeet_server.kernels.lora_tables import LoraTable, LoraTables

LAYOUT = LoraLayout(rank_unit=abi.RANK_UNIT, panel=1)


class DeviceLoraTables(LoraTables):
    """See `LoraTables`; what is put and cleared is seen after `commit`. Also owns the scratch memory of the
    product, which all modules share in turn."""

    def __init__(
        self,
        library: ctypes.CDLL,
        modules: Sequence[LoraModule],
        num_slots: int,
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
        max_rank: int = MAX_LORA_RANK,
    ) -> None:
        """For steps of at most `max_rows` rows. `dtype` is bfloat16 or float16. Raises `ValueError`."""
        if num_slots < 1 or max_rows < 1 or max_rank < 1:
            raise ValueError(f"{num_slots} slots, {max_rows} rows and rank {max_rank} must all be positive")
        if wrong := [module for module in modules if not 1 <= len(module.out_features) <= abi.MAX_SLICES]:
            raise ValueError(f"a module has 1 to {abi.MAX_SLICES} slices, not {len(wrong[0].out_features)}")
        super().__init__(modules, num_slots, dtype, LAYOUT)
        self.device, self.max_rank = device, -(-max_rank // abi.RANK_TILE) * abi.RANK_TILE
        self._library, self._max_rows = library, max_rows
        self._slot_rank = np.zeros(num_slots, np.int32)
        size = (num_slots + 1) * self.entries.strides[0]  # after the slots follows what sums them up
        self._on_device = torch.zeros(size, dtype=torch.uint8, device=device)
        self._staging = Staging(size, device)
        self._touched: set[int] = set()  # slots that changed since the last commit
        # What 16-byte loads cannot read stays empty: a vocabulary may have an odd size.
        odd = [any(width % 8 for width in (module.in_features, *module.out_features)) for module in modules]
        self._odd = np.repeat(odd, [len(module.out_features) for module in modules])
        self.native = {
            table: self._point(table)
            for table, unusable in zip(self.tables, odd, strict=True)
            if not unusable
        }
        values = (library.lorikeet_sgmv_scratch(native, max_rows) for native in self.native.values())
        self.scratch = torch.empty(max(values, default=0), dtype=torch.float32, device=device)

    def put(self, slot: int, adapter: LoraAdapter) -> None:
        super().put(slot, adapter)
        self._touched.add(slot)

    def clear(self, slot: int) -> None:
        super().clear(slot)
        self._touched.add(slot)

    def commit(self) -> None:
        """See `LoraTables`. Copies from pinned memory, in the order of the current stream: the slots between
        the first and the last that changed, and what sums up all."""
        if not self._touched:
            return
        low, high = min(self._touched), max(self._touched) + 1
        self._touched.clear()
        ranks, width = self.entries["rank"], self.entries.strides[0]
        self._slot_rank[low:high] = ranks[low:high].max(axis=1)
        buffer = self._staging.take().numpy().view(ENTRY).reshape(-1, ranks.shape[1])
        buffer[low:high] = self.entries[low:high]
        buffer["rank"][-1] = ranks.max(axis=0)
        for first, end in ((low, high), (len(ranks), len(buffer))):
            self._staging.send(self._on_device, first * width, end * width)

    def batcher(self, parcel: Parcel | None = None) -> Tiler:
        """See `LoraTables`."""
        parcel = parcel or Singly(self.device)
        return Tiler(self._library, self._slot_rank, self._max_rows, self.max_rank, parcel)

    def _point(self, table: LoraTable) -> abi.Tables:
        first, size = table.first * ENTRY.itemsize, self.entries.shape[1]
        columns = (ctypes.c_int32 * (abi.MAX_SLICES + 1))(0, *table.columns.cumsum().tolist())
        sizes = len(table.columns), len(self.held), table.in_features, self.max_rank
        return abi.Tables(self._on_device.data_ptr() + first, size, columns, *sizes)

    def _check(self, slot: int, adapter: LoraAdapter) -> None:
        super()._check(slot, adapter)
        if adapter.memory.device != self.device:
            raise ValueError(f"an adapter must be on {self.device}, not on {adapter.memory.device}")
        if adapter.memory.data_ptr() % 16:
            raise ValueError("the memory of an adapter must begin on 16 bytes")
        ranks = adapter.entries["rank"]
        if (largest := ranks.max()) > self.max_rank:
            raise ValueError(f"rank {largest} is above the {self.max_rank} that the tables were made for")
        if wrong := np.flatnonzero(ranks * self._odd).tolist():
            widths = f"{self.form.inputs[wrong[0]]} -> {self.form.outputs[wrong[0]]}"
            raise ValueError(f"the CUDA kernels need widths that are multiples of 8, not {widths}")
