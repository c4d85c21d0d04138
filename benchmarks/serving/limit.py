"""The physical limit of a decode step on this machine: bytes that must be read over measured bandwidth, or
arithmetic over its measured rate.

How many bytes must be read depends on how the weights are stored. The goal counts 16 bits for each; a file of
4 or 8 bits that is kept so is read faster than that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from lorikeet_server.config import Dtype
from lorikeet_server.dist import TensorParallel
from lorikeet_server.kernels import LinearMode, PackedLinear, select
from lorikeet_server.models import registry
from lorikeet_server.service.load import storage_mode
from lorikeet_server.weights import open_source
from lorikeet_server.weights.prepare import prepare

# SmolLM2-135M, from its config: parameters read in each step (the tied embedding is read whole, as the
# head), KV values per token
PARAMETERS = 134_515_008
FLOP_PER_TOKEN = 2 * PARAMETERS
KV_VALUES_PER_TOKEN = 30 * 2 * 192


@dataclass(frozen=True)
class Stored:
    """Bytes of all the weights that a step reads, and of one KV value."""

    weights: int
    kv_value: int


# What the goal is defined by, whatever the server does.
IN_16_BITS = Stored(weights=2 * PARAMETERS, kv_value=2)


@dataclass(frozen=True)
class Machine:
    """Bytes and floating-point operations per second, measured with `threads` threads."""

    read: float
    compute: float

    def step_seconds(self, batch: int, context: int, stored: Stored) -> float:
        moved = stored.weights + batch * context * KV_VALUES_PER_TOKEN * stored.kv_value
        return max(moved / self.read, batch * FLOP_PER_TOKEN / self.compute)


def measure() -> Machine:
    """The best of several passes over 512 MiB, and of several 2048^3 products in float32 and bfloat16: which
    is the faster depends on the processor's instructions."""
    data = torch.ones(128 << 20)
    factors = [torch.randn(2, 2048, 2048).to(kind) for kind in (torch.float32, torch.bfloat16)]
    reads, products = [], []
    for _ in range(8):
        started = time.perf_counter()
        data.sum()
        reads.append(data.numel() * 4 / (time.perf_counter() - started))
        for left, right in factors:
            started = time.perf_counter()
            left @ right
            products.append(2 * 2048**3 / (time.perf_counter() - started))
    return Machine(read=max(reads), compute=max(products))


def as_served(model_id: str, dtype: str) -> Stored:
    """What `lorikeet serve --model-id MODEL_ID --dtype DTYPE` stores on a CPU: the weights are packed as it
    packs them, and counted.
    """
    path = prepare(model_id).model_path
    source, kernels = open_source(path), select("cpu")
    pack, sizes = kernels.pack_linear, []

    def counting(weight: torch.Tensor, mode: LinearMode) -> PackedLinear:
        packed: Any = pack(weight, mode)
        sizes.append(packed.data.nbytes)
        return packed

    kernels.pack_linear = counting  # type: ignore[method-assign]
    mode = storage_mode(Dtype(dtype), source)
    registry.load(source, kernels, mode, TensorParallel())
    kept = kernels.kv_dtype(mode, quantised=source.quantised)
    return Stored(weights=sum(sizes), kv_value=kept.itemsize)
