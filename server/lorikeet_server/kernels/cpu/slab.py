"""Memory for packed weights: contiguous, and on huge pages."""

import torch
from torch import Tensor

from lorikeet_server.device.huge_pages import filling, mapping

ALIGNMENT = 64  # a cache line
SLAB_BYTES = 64 << 20


class Slabs:
    """Hands out pieces of large mappings, one after the other. A mapping lives as long as its pieces."""

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """`size` bytes at the start of a cache line."""
        padded = -(-size // ALIGNMENT) * ALIGNMENT
        if padded > self._free.shape[0]:
            self._free = mapping(filling(max(padded, SLAB_BYTES)))
        piece, self._free = self._free[:size], self._free[padded:]
        return piece
