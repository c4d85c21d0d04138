"""Memory of a KV pool that is taken ahead of use."""

import ctypes
import math
import mmap

import numpy as np
import pytest
import torch

from lorikeet_server.kvcache import fresh_pages
from lorikeet_server.kvcache.fresh_pages import FreshPages
from lorikeet_server.kvcache.pool import KvPool

BLOCKS = 2000
SHAPE = (BLOCKS, 2, 1, 1024)


def fresh_tensor() -> torch.Tensor:
    """Zeros that take no memory yet. An allocator might give such as was used before."""
    memory = mmap.mmap(-1, 4 * math.prod(SHAPE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.float32).view(SHAPE)


@pytest.fixture
def pool() -> KvPool:
    keys, values = ([fresh_tensor() for _ in range(2)] for _ in range(2))
    return KvPool(keys, values, BLOCKS, 16)


def resident_bytes(pool: KvPool) -> int:
    """Of the pool's memory, what the system has given; to the page."""
    total, libc = 0, ctypes.CDLL(None)
    for tensor in (*pool.keys, *pool.values):
        first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        size = tensor.data_ptr() + tensor.nbytes - first
        pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        assert (
            libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(size), pages.ctypes.data_as(ctypes.c_void_p))
            == 0
        )
        total += int((pages & 1).sum()) * mmap.PAGESIZE
    return total


def block_bytes(pool: KvPool) -> int:
    return sum(tensor.nbytes for tensor in (*pool.keys, *pool.values)) // BLOCKS


def test_all_of_a_small_pool_is_taken_and_nothing_in_it_changes(pool: KvPool) -> None:
    assert resident_bytes(pool) == 0
    pool.keys[1][7].fill_(3.0)
    fresh, calls = FreshPages(pool), 0
    while fresh.take(0):
        calls += 1
    total = block_bytes(pool) * BLOCKS
    assert resident_bytes(pool) >= total
    # A call is short: no more than a stretch of one tensor.
    assert calls >= total / fresh_pages.STRETCH_BYTES
    assert torch.all(pool.keys[1][7] == 3.0)
    assert not any(tensor.any() for tensor in (pool.keys[0], *pool.values))


def test_no_more_than_some_way_ahead_of_what_is_used(pool: KvPool, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = 100 * block_bytes(pool)
    monkeypatch.setattr(fresh_pages, "AHEAD_BYTES", ahead)
    monkeypatch.setattr(fresh_pages, "STRETCH_BYTES", 4096)
    fresh = FreshPages(pool)
    while fresh.take(0):
        pass
    # With the huge pages around the ends of each tensor.
    assert ahead <= resident_bytes(pool) <= ahead + 8 * (2 << 20)
    assert not fresh.take(0)
    assert fresh.take(50)  # those have been given out, so as many more are wanted
    while fresh.take(BLOCKS):
        pass
    assert resident_bytes(pool) >= block_bytes(pool) * BLOCKS
