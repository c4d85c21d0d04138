"""The physical limit of a decode step on this machine: bytes that must be read over measured bandwidth, or
arithmetic over its measured rate.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

# SmolLM2-135M, from its config: parameters read in each step (the tied embedding is read whole, as the
# head), KV values per token
PARAMETERS = 134_515_008
FLOP_PER_TOKEN = 2 * PARAMETERS
KV_VALUES_PER_TOKEN = 30 * 2 * 192


@dataclass(frozen=True)
class Machine:
    """Bytes and floating-point operations per second, measured with `threads` threads."""

    read: float
    compute: float

    def step_seconds(self, batch: int, context: int, weight_bytes: int) -> float:
        moved = PARAMETERS * weight_bytes + batch * context * KV_VALUES_PER_TOKEN * weight_bytes
        return max(moved / self.read, batch * FLOP_PER_TOKEN / self.compute)


def measure() -> Machine:
    """The best of several passes over 512 MiB, and of several 2048^3 products."""
    data = torch.ones(128 << 20)
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    reads, products = [], []
    for _ in range(8):
        started = time.perf_counter()
        data.sum()
        reads.append(data.numel() * 4 / (time.perf_counter() - started))
        started = time.perf_counter()
        left @ right
        products.append(2 * 2048**3 / (time.perf_counter() - started))
    return Machine(read=max(reads), compute=max(products))
