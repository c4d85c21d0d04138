"""Where each adapter slot of one fused module keeps its A and B, at addresses that never change.

The table is the kernels' side of adapter residency: whoever moves an adapter into a slot calls `set_slot`,
and the kernels see it on their next call. It knows nothing of adapter files, names or LRU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lorikeet_server.kernels.lora_layout import RANK_MAJOR, LoraLayout

dtype_codes = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@dataclass(frozen=True, slots=True, eq=False)
class SlotArrays:
    """What kernels read of one module, entry [slice, slot]. All zero is an empty slot."""

    a: Tensor  # i64, address of A; 0 = this slot does not target the slice
    b: Tensor  # i64, address of B
    g: Tensor  # i64, address of DoRA's scale per channel; 0 = none
    rank: Tensor  # i32, as stored
    dtype: Tensor  # i32, one of `dtype_codes`
    scale: Tensor  # f32

    @staticmethod
    def zeros(slices: int, slots: int) -> "SlotArrays":
        """Arrays of their own memory."""
        shape = (slices, slots)
        a, b, g = torch.zeros(3, *shape, dtype=torch.int64)
        rank, dtype = torch.zeros(2, *shape, dtype=torch.int32)
        return SlotArrays(a, b, g, rank, dtype, torch.zeros(shape))


class LoraTable:
    """Slots of one module of one layer. Slices are the fused projections in column order: q, k, v or gate,
    up."""

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        num_slots: int,
        layout: LoraLayout = RANK_MAJOR,
        arrays: SlotArrays | None = None,
    ) -> None:
        self.in_features = in_features
        self.out_features = tuple(out_features)
        self.num_slots = num_slots
        self.layout = layout
        self.arrays = arrays or SlotArrays.zeros(len(self.out_features), num_slots)
        self.columns = torch.tensor(self.out_features, dtype=torch.int32)
        # The same memory through numpy, which writes single entries faster: an adapter has about a thousand,
        # and the step waits.
        self._entries = tuple(getattr(self.arrays, each.name).numpy() for each in fields(SlotArrays))
        self._held: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor | None]] = {}

    def set_slot(
        self,
        slot: int,
        slice_index: int,
        a: Tensor,
        b: Tensor,
        scale: float,
        channel_scale: Tensor | None = None,
    ) -> None:
        """Put `a` [rank, in] and `b` [out, rank] into a slot; the table keeps them alive until it is cleared.

        Both have the same dtype (f32, f16 or bf16), and are best given as `layout.place` returns them: then
        nothing is copied. `scale` is alpha / rank or its like. `channel_scale` f32 [out] is DoRA's
        m / ||W + scale * B A||. Raises `ValueError`/`TypeError`.
        """
        self._check(slot, slice_index, a, b, channel_scale)
        a, b = self.layout.place(a, b)
        where = (slice_index, slot)
        self._held[where] = (a, b, channel_scale)
        pointers = (a.data_ptr(), b.data_ptr(), 0 if channel_scale is None else channel_scale.data_ptr())
        values = (*pointers, a.shape[0], dtype_codes[a.dtype], scale)
        for array, value in zip(self._entries, values, strict=True):
            array[where] = value

    def clear_slot(self, slot: int) -> None:
        """Empty the slot in every slice; clearing an empty slot is allowed."""
        for slice_index in range(len(self.out_features)):
            self.clear_slice(slot, slice_index)

    def clear_slice(self, slot: int, slice_index: int) -> None:
        """Empty one slice of the slot."""
        self._check_place(slot, slice_index)
        where = (slice_index, slot)
        if where in self._held:
            for array in self._entries:
                array[where] = 0
            del self._held[where]

    def get(self, slot: int, slice_index: int) -> tuple[Tensor, Tensor, float, Tensor | None] | None:
        """`(a, b, scale, channel_scale)` as set, or None if the slot does not target the slice."""
        held = self._held.get((slice_index, slot))
        if held is None:
            return None
        return held[0], held[1], float(self.arrays.scale[slice_index, slot]), held[2]

    def _check_place(self, slot: int, slice_index: int) -> None:
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"adapter slot {slot} is outside 0..{self.num_slots - 1}")
        if not 0 <= slice_index < len(self.out_features):
            raise ValueError(f"slice {slice_index} is outside 0..{len(self.out_features) - 1}")

    def _check(self, slot: int, slice_index: int, a: Tensor, b: Tensor, channel_scale: Tensor | None) -> None:
        self._check_place(slot, slice_index)
        out = self.out_features[slice_index]
        if a.dim() != 2 or a.shape[1] != self.in_features or a.shape[0] == 0:
            raise ValueError(f"A must be [rank, {self.in_features}], not {list(a.shape)}")
        if list(b.shape) != [out, a.shape[0]]:
            raise ValueError(f"B must be [{out}, {a.shape[0]}], not {list(b.shape)}")
        if a.dtype != b.dtype or a.dtype not in dtype_codes:
            raise TypeError(
                f"A and B must share one of float32, float16, bfloat16, not {a.dtype} and {b.dtype}"
            )
        g = channel_scale
        if g is not None and (g.dtype != torch.float32 or list(g.shape) != [out] or not g.is_contiguous()):
            raise ValueError(f"the channel scale must be contiguous float32 [{out}]")
