"""The adapter tables of a whole model on a device: one buffer at an address that never changes.

All entries of a slot lie together, so filling it moves only its own few kilobytes, however many slots there
are. Captured graphs read the buffer, and so replay for every mix of adapters.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lorikeet_server.kernels.cuda import abi
from lorikeet_server.kernels.cuda.staging import Staging
from lorikeet_server.kernels.cuda.tiles import TileBuffer
from lorikeet_server.kernels.lora_layout import LoraLayout
from lorikeet_server.kernels.lora_table import LoraTable, SlotArrays
from lorikeet_server.kernels.lora_tables import LoraModule

LAYOUT = LoraLayout(rank_unit=abi.RANK_UNIT, b_by_rank=False)
MAX_RANK = 512


@dataclass(slots=True)
class Shared:
    """What the modules of a model have in common."""

    dtype: torch.dtype
    device: torch.device
    max_rank: int
    scratch: Tensor  # f32, of the module that is being computed
    touched: set[int]  # slots that changed since the last commit


class DeviceLoraTable(LoraTable):
    """The slots of one module, a part of the model's buffer. What is set is seen after `commit`."""

    def __init__(self, of: Shared, module: LoraModule, entries: npt.NDArray[np.void], address: int) -> None:
        """`entries` [slots, slices] of `abi.ENTRY`, the module's part of the host's copy; `address` of that
        part on the device."""
        a, b, g, rank, scale = (torch.from_numpy(entries[name].T) for name in abi.ENTRY.names or ())
        arrays = SlotArrays(a, b, g, rank, torch.zeros(rank.shape, dtype=torch.int32), scale)
        slots, slices = entries.shape
        super().__init__(module.in_features, module.out_features, slots, LAYOUT, arrays)
        self.of = of
        # What 16-byte loads cannot read stays empty: a vocabulary may have an odd size.
        self.usable = not any(width % 8 for width in (self.in_features, *self.out_features))
        self.native = abi.Tables(
            address,
            entries.strides[0] // entries.itemsize,
            (ctypes.c_int32 * (abi.MAX_SLICES + 1))(0, *np.cumsum(module.out_features).tolist()),
            slices,
            slots,
            module.in_features,
            of.max_rank,
        )

    def set_slot(
        self,
        slot: int,
        slice_index: int,
        a: Tensor,
        b: Tensor,
        scale: float,
        channel_scale: Tensor | None = None,
    ) -> None:
        super().set_slot(slot, slice_index, a, b, scale, channel_scale)
        self.of.touched.add(slot)

    def clear_slice(self, slot: int, slice_index: int) -> None:
        super().clear_slice(slot, slice_index)
        self.of.touched.add(slot)

    def _check(self, slot: int, slice_index: int, a: Tensor, b: Tensor, channel_scale: Tensor | None) -> None:
        super()._check(slot, slice_index, a, b, channel_scale)
        of, out = self.of, self.out_features[slice_index]
        given = [a, b] if channel_scale is None else [a, b, channel_scale]
        if any(tensor.device != of.device for tensor in given):
            raise ValueError(f"an adapter must be on {of.device}, not on {a.device}")
        if a.dtype != of.dtype:
            raise TypeError(f"A and B must be {of.dtype} as the activations, not {a.dtype}")
        if not self.usable:
            raise ValueError(
                f"the CUDA kernels need widths that are multiples of 8, not {self.in_features} -> {out}"
            )
        if self.layout.padded(a.shape[0]) > of.max_rank:
            raise ValueError(f"rank {a.shape[0]} is above the {of.max_rank} that the tables were made for")
        if any(tensor.data_ptr() % 16 for tensor in given):
            raise ValueError("A, B and the channel scale must begin on 16 bytes")


class DeviceLoraTables:
    """See `LoraTables`. Also owns the scratch memory of the product, which all modules share in turn."""

    def __init__(
        self,
        library: ctypes.CDLL,
        modules: Sequence[LoraModule],
        num_slots: int,
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
        max_rank: int = MAX_RANK,
    ) -> None:
        """For steps of at most `max_rows` rows. `dtype` is bfloat16 or float16. Raises `ValueError`."""
        if num_slots < 1 or max_rows < 1 or max_rank < 1:
            raise ValueError(f"{num_slots} slots, {max_rows} rows and rank {max_rank} must all be positive")
        if wrong := [module for module in modules if not 1 <= len(module.out_features) <= abi.MAX_SLICES]:
            raise ValueError(f"a module has 1 to {abi.MAX_SLICES} slices, not {len(wrong[0].out_features)}")
        max_rank = -(-max_rank // abi.RANK_TILE) * abi.RANK_TILE
        self._library, self._max_rows = library, max_rows
        slices = sum(len(module.out_features) for module in modules)
        self._host = np.zeros((num_slots + 1, slices), abi.ENTRY)  # the last row sums up the others
        self._slot_rank = np.zeros(num_slots, np.int32)
        self._entries = torch.zeros(self._host.nbytes, dtype=torch.uint8, device=device)
        self._staging = Staging(self._host.nbytes, device)
        self.shared = Shared(dtype, device, max_rank, torch.empty(0), set())
        self.tables = tuple(self._split(modules))
        values = (library.lorikeet_sgmv_scratch(table.native, max_rows) for table in self.tables)
        self.shared.scratch = torch.empty(max(values, default=0), dtype=torch.float32, device=device)

    def commit(self) -> None:
        """See `LoraTables`. Copies from pinned memory, in the order of the current stream: the slots between
        the first and the last that changed, and what sums up all."""
        touched = self.shared.touched
        if not touched:
            return
        low, high = min(touched), max(touched) + 1
        touched.clear()
        ranks = self._host["rank"]
        self._slot_rank[low:high] = ranks[low:high].max(axis=1)
        ranks[-1] = ranks[:-1].max(axis=0)
        width, buffer = self._host[0].nbytes, self._staging.take().numpy()
        for first, end in ((low, high), (len(ranks) - 1, len(ranks))):
            buffer[first * width : end * width] = self._host[first:end].view(np.uint8).reshape(-1)
            self._staging.send(self._entries, first * width, end * width)

    def batcher(self) -> TileBuffer:
        """See `LoraTables`. Its place on the device stays, for graphs that are captured with its tiles."""
        of = self.shared
        return TileBuffer(self._library, self._slot_rank, self._max_rows, of.max_rank, of.device)

    def _split(self, modules: Sequence[LoraModule]) -> Iterator[DeviceLoraTable]:
        first = 0
        for module in modules:
            end = first + len(module.out_features)
            address = self._entries.data_ptr() + first * abi.ENTRY.itemsize
            yield DeviceLoraTable(self.shared, module, self._host[:-1, first:end], address)
            first = end
