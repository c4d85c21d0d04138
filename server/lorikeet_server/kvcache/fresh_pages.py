"""The part of a host's KV pool that no step has written yet."""

from collections.abc import Iterator

import torch

from lorikeet_server.kvcache.pool import KvPool

# How far ahead of use, over all layers. More would hold memory that a small load never needs.
AHEAD_BYTES = 512 << 20
# What one call takes: one huge page, where there are such.
STRETCH_BYTES = 2 << 20
# A write takes the page around it, a huge one if the system gives those.
PAGE_BYTES = 4096


class FreshPages:
    """Takes memory ahead of the steps that will write it, in the order in which a router gives blocks out.

    A system gives memory at the first write, zeroed. That takes 0.1 ms for a huge page, and milliseconds in a
    virtual machine to which its host has not given the memory either; since the tensors of all layers come to
    their next page together, one step would wait for all of them.
    """

    def __init__(self, pool: KvPool) -> None:
        tensors = [*pool.keys, *pool.values]
        self._block_bytes = sum(tensor.nbytes for tensor in tensors) // pool.num_blocks
        self._taken = 0  # blocks before this one lie in memory that is there
        self._stretches = self._take_all(tensors, pool.num_blocks)

    def take(self, used: int) -> bool:
        """Takes a little more, where blocks up to `used` have been given out; False if there is enough.

        The caller's thread is the one that writes the pool.
        """
        if (self._taken - used) * self._block_bytes >= AHEAD_BYTES:
            return False
        return next(self._stretches, False)

    def _take_all(self, tensors: list[torch.Tensor], num_blocks: int) -> Iterator[bool]:
        largest = max(tensor.nbytes for tensor in tensors) // num_blocks
        step = max(1, STRETCH_BYTES // largest)
        for first in range(0, num_blocks, step):
            for tensor in tensors:
                stretch = tensor[first : first + step].view(-1).view(torch.uint8)
                # In place, and adding nothing: a block may be in use.
                stretch[::PAGE_BYTES] |= 0
                yield True
            self._taken = min(first + step, num_blocks)
