"""Host memory on huge pages, where the system gives them.

A step reads every weight and many adapters once, so with small pages it misses the address cache all the
time: huge pages took 15 to 25 % off the linears of a step (Sapphire Rapids, one thread), and 1 % off a whole
step of 20 rows with 16 adapters (Emerald Rapids, two threads).
"""

import mmap

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20  # bytes, on x86 and on most others


def mapping(size: int) -> Tensor:
    """`size` zero bytes, from the start of a page. Raises `MemoryError` or `OSError`."""
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE_PAGE  # what is cut off at both ends is never touched and takes nothing
    full = size - size % HUGE_PAGE  # a last page that is begun would be taken whole
    if full and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE, start, full)
    return whole[start : start + size]


def filling(size: int) -> int:
    """`size`, or with the rest of the last page, where that is an eighth of the whole at most."""
    whole = -(-size // HUGE_PAGE) * HUGE_PAGE
    return whole if whole - size <= whole // 8 else size
