"""The key and value caches of every layer, in whole blocks."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from lorikeet_server.errors import ConfigError
from lorikeet_server.kernels import Kernels

KV_DTYPE = torch.float32


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one block holds on this rank."""

    num_layers: int
    kv_heads: int
    head_dim: int

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.kv_heads * self.head_dim * KV_DTYPE.itemsize


@dataclass(frozen=True, slots=True)
class KvPool:
    """One key and one value tensor per layer, in the kernels' own layout."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    num_blocks: int
    block_size: int

    @classmethod
    def allocate(cls, kernels: Kernels, shape: KvShape, num_blocks: int, block_size: int) -> "KvPool":
        """Zeroed, since masked keys are still multiplied by zero, and stale memory may hold NaN."""
        key, value = kernels.kv_layout(num_blocks, block_size, shape.kv_heads, shape.head_dim, KV_DTYPE)
        return cls(
            [_zeros(key) for _ in range(shape.num_layers)],
            [_zeros(value) for _ in range(shape.num_layers)],
            num_blocks,
            block_size,
        )


def _zeros(shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros, aligned to a cache line. NumPy takes zero pages, free until used; torch would write them all."""
    line = 64 // KV_DTYPE.itemsize
    size = math.prod(shape)
    memory = torch.from_numpy(np.zeros(size + line, np.float32))
    first = -memory.data_ptr() // KV_DTYPE.itemsize % line
    return memory[first : first + size].view(shape)


def count_blocks(shape: KvShape, block_size: int, kv_bytes: int, max_blocks: int) -> int:
    """How many blocks `kv_bytes` buy, at most `max_blocks`. Raises ConfigError when not even one fits."""
    blocks = kv_bytes // (block_size * shape.bytes_per_token)
    if blocks < 1:
        raise ConfigError(
            f"{kv_bytes} bytes of KV memory hold no block of {block_size} tokens "
            f"of {shape.bytes_per_token} bytes"
        )
    return min(blocks, max_blocks)
