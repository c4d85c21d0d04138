"""Which rows of a step want which adapter, as the kernels read it: tiles of rows of equal slot.

Cut once per step for all modules and layers.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lorikeet_server.device.base import Parcel
from lorikeet_server.kernels.cuda import abi

DECODE_ROWS = 256  # up to which a step is cut into the tiles of the decode kernels


@dataclass(frozen=True, slots=True)
class LoraTiles:
    """See `LoraBatch`."""

    num_rows: int
    tile_rows: int
    captured: bool  # ops on this batch are, for other steps too
    most: int  # tiles of those steps, with those of rows without adapter
    native: abi.Tiles  # into `memory`
    memory: Tensor = field(repr=False)


class Tiler:
    """See `LoraBatcher`. Batches of as many rows take as much of their parcels."""

    def __init__(
        self,
        library: ctypes.CDLL,
        slot_rank: npt.NDArray[np.int32],
        max_rows: int,
        max_rank: int,
        parcel: Parcel,
    ) -> None:
        """`slot_rank` [slots] is the largest rank in each slot, read at each call."""
        self._library, self._slot_rank, self._num_slots = library, slot_rank, len(slot_rank)
        self._max_rows, self._max_rank, self._parcel = max_rows, max_rank, parcel
        largest = (self._layout(min(max_rows, DECODE_ROWS)), self._layout(max_rows))
        self._words = np.zeros(max(layout.words for layout in largest), np.int32)

    def __call__(
        self, row_slots: Tensor | npt.NDArray[np.int32] | Sequence[int], most: int | None = None
    ) -> LoraTiles:
        """Cut the rows. Raises `ValueError` for a row, a slot or an adapter too many."""
        slots = np.ascontiguousarray(row_slots, dtype=np.int32)
        rows = len(slots)
        if rows > self._max_rows:
            raise ValueError(f"the step has {rows} rows, the tables were made for {self._max_rows}")
        layout = self._layout(rows)
        pointers = (self._slot_rank.ctypes.data, layout, self._words.ctypes.data)
        words = self._library.lorikeet_schedule(slots.ctypes.data, rows, self._num_slots, *pointers)
        if words < 0:
            raise ValueError(f"adapter slot {slots.max()} is outside 0..{self._num_slots - 1}")
        memory = self._parcel.add(self._words[:words], room=4 * layout.words)
        tiles = bound = int(self._words[2])
        if most is not None:
            bound = self._layout(rows, min(most, self._num_slots)).max_tiles
            if tiles > bound:
                raise ValueError(f"{tiles} tiles of rows are more than the {bound} that {most} adapters give")
        native = _point(layout, memory.data_ptr())
        return LoraTiles(rows, layout.tile_rows, most is not None, bound, native, memory)

    def _layout(self, rows: int, slots: int | None = None) -> abi.TileLayout:
        height = abi.DECODE_TILE if rows <= DECODE_ROWS else abi.PREFILL_TILE
        layout, slots = abi.TileLayout(), self._num_slots if slots is None else slots
        self._library.lorikeet_tile_layout(rows, slots, height, self._max_rank, layout)
        return layout


def _point(layout: abi.TileLayout, start: int) -> abi.Tiles:
    return abi.Tiles(
        start, *(start + 4 * place for place in (layout.permutation, layout.tiles, layout.items))
    )
