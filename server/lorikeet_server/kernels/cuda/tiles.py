"""Which rows of a step want which adapter, as the kernels read it: tiles of rows of equal slot.

Cut once per step for all modules and layers, into one buffer that one copy moves.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lorikeet_server.kernels.cuda import abi
from lorikeet_server.kernels.cuda.staging import Staging

DECODE_ROWS = 256  # up to which a step is cut into the tiles of the decode kernels


@dataclass(frozen=True, slots=True)
class LoraTiles:
    """See `LoraBatch`. The same `native` addresses for every step that is cut alike."""

    num_rows: int
    tile_rows: int
    live: int  # tiles; -1 for a decode, since a captured graph may be replayed with others
    native: abi.Tiles  # into `memory`
    memory: Tensor = field(repr=False)


class TileBuffer:
    """See `LoraBatcher`. Fixed memory on the device, overwritten by each call in the order of the stream."""

    def __init__(
        self,
        library: ctypes.CDLL,
        slot_rank: npt.NDArray[np.int32],
        max_rows: int,
        max_rank: int,
        device: torch.device,
    ) -> None:
        """`slot_rank` [slots] is the largest rank in each slot, read at each call."""
        self._library, self._slot_rank, self._num_slots = library, slot_rank, len(slot_rank)
        self._max_rows = max_rows
        self._layouts = {abi.DECODE_TILE: abi.TileLayout(), abi.PREFILL_TILE: abi.TileLayout()}
        for height, layout in self._layouts.items():
            rows = min(max_rows, DECODE_ROWS) if height == abi.DECODE_TILE else max_rows
            library.lorikeet_tile_layout(rows, self._num_slots, height, max_rank, layout)
        size = 4 * max(layout.words for layout in self._layouts.values())
        self._words = torch.zeros(size, dtype=torch.uint8, device=device)
        self._staging = Staging(size, device)
        self._native = {height: self._point(layout) for height, layout in self._layouts.items()}

    def __call__(self, row_slots: Tensor | npt.NDArray[np.int32] | Sequence[int]) -> LoraTiles:
        """Cut the rows and start their copy to the device. Raises `ValueError` for a row or slot too many."""
        slots = np.ascontiguousarray(row_slots, dtype=np.int32)
        rows = len(slots)
        if rows > self._max_rows:
            raise ValueError(f"the step has {rows} rows, the tables were made for {self._max_rows}")
        height = abi.DECODE_TILE if rows <= DECODE_ROWS else abi.PREFILL_TILE
        buffer = self._staging.take()
        pointers = (self._slot_rank.ctypes.data, self._layouts[height], buffer.data_ptr())
        words = self._library.lorikeet_schedule(slots.ctypes.data, rows, self._num_slots, *pointers)
        if words < 0:
            raise ValueError(f"adapter slot {slots.max()} is outside 0..{self._num_slots - 1}")
        self._staging.send(self._words, 0, 4 * words)
        live = int(buffer[:4].view(torch.int32)) if height == abi.PREFILL_TILE else -1
        return LoraTiles(rows, height, live, self._native[height], self._words)

    def _point(self, layout: abi.TileLayout) -> abi.Tiles:
        start = self._words.data_ptr()
        return abi.Tiles(
            start, *(start + 4 * place for place in (layout.permutation, layout.tiles, layout.items))
        )
