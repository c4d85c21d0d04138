"""The key and value caches of every layer, in whole blocks."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lorikeet_server.errors import ConfigError
from lorikeet_server.kernels import Kernels

CACHE_LINE = 64


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one block holds on this rank."""

    num_layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        scale = 4 if self.dtype is torch.int16 else 0
        return 2 * self.num_layers * self.kv_heads * (self.head_dim * self.dtype.itemsize + scale)


@dataclass(frozen=True, slots=True)
class KvPool:
    """One key and one value tensor per layer, in the kernels' own layout.

    Blocks that a sliding window has passed stay with their sequence. Layers share block tables, and those
    without a window still read them, as do sequences that begin with the same prompt; where every layer has a
    window, as in the first Mistral 7B, they are memory that one long sequence could do without.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    num_blocks: int
    block_size: int

    @classmethod
    def allocate(cls, kernels: Kernels, shape: KvShape, num_blocks: int, block_size: int) -> "KvPool":
        """Zeroed, since masked keys are still multiplied by zero, and stale memory may hold NaN."""
        key, value = kernels.kv_layout(num_blocks, block_size, shape.kv_heads, shape.head_dim, shape.dtype)
        zeros = _host_zeros if kernels.device.type == "cpu" else partial(torch.zeros, device=kernels.device)
        return cls(
            [zeros(key, dtype=shape.dtype) for _ in range(shape.num_layers)],
            [zeros(value, dtype=shape.dtype) for _ in range(shape.num_layers)],
            num_blocks,
            block_size,
        )


def _host_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros, aligned to a cache line. NumPy takes zero pages, free until used; torch would write them all."""
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = torch.from_numpy(np.zeros(size + CACHE_LINE, np.uint8))
    except MemoryError as error:
        message = f"this machine does not give the KV cache its memory ({error}); lower --kv-cache-bytes"
        raise ConfigError(message) from error
    first = -memory.data_ptr() % CACHE_LINE
    return memory[first : first + size].view(dtype).view(shape)


def count_blocks(shape: KvShape, block_size: int, kv_bytes: int, max_blocks: int) -> int:
    """How many blocks `kv_bytes` buy, at most `max_blocks`. Raises ConfigError when not even one fits."""
    blocks = kv_bytes // (block_size * shape.bytes_per_token)
    if blocks < 1:
        raise ConfigError(
            f"{kv_bytes} bytes of KV memory hold no block of {block_size} tokens "
            f"of {shape.bytes_per_token} bytes; raise --kv-cache-bytes"
        )
    return min(blocks, max_blocks)
