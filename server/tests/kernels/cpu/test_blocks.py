"""Weights from quantised files: recognised, kept in blocks, and equal to their float32 values to the bit."""

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

from lorikeet_server.kernels import Kernels
from lorikeet_server.kernels.cpu.native import CpuLinear

TYPES = {"block4": GGMLQuantizationType.Q4_1, "block8": GGMLQuantizationType.Q8_0}


def quantised(storage: str, out: int, width: int) -> Tensor:
    """Random weights as a GGUF reader returns them."""
    kind = TYPES[storage]
    return torch.from_numpy(
        dequantize(quantize(torch.randn(out, width).numpy(), kind), kind).astype(np.float32)
    )


@pytest.mark.parametrize("storage", TYPES)
@pytest.mark.parametrize("shape", [(1, 32), (32, 64), (33, 160), (100, 576), (64, 1536)])
def test_equals_float32_to_the_bit(kernels: Kernels, storage: str, shape: tuple[int, int]) -> None:
    weight = quantised(storage, *shape)
    packed = kernels.pack_linear(weight, "float16")
    assert isinstance(packed, CpuLinear)
    assert (packed.storage, packed.mode) == (storage, "float16")
    assert torch.equal(kernels.linear(torch.eye(shape[1]), packed), weight.t())
    nudged = torch.nn.functional.pad(weight, (0, 1), value=0.3)  # no multiple of 32: cannot be in blocks
    exact = kernels.pack_linear(nudged, "float32")
    assert isinstance(exact, CpuLinear) and exact.storage == "float32"
    for rows in (0, 1, 5, 12, 13, 97, 256):
        x = torch.randn(rows, shape[1])
        result = kernels.linear(x, packed)
        assert torch.equal(result, kernels.linear(torch.nn.functional.pad(x, (0, 1)), exact))


@pytest.mark.parametrize("storage", TYPES)
def test_fused_and_sliced_weights_are_recognised(kernels: Kernels, storage: str) -> None:
    """Projections are joined along the output and, with several ranks, cut along the input."""
    weight = torch.cat((quantised(storage, 48, 128), quantised(storage, 16, 128)))[:, 32:96]
    packed = kernels.pack_linear(weight, "float32")
    assert isinstance(packed, CpuLinear) and packed.storage == storage
    assert torch.equal(kernels.linear(torch.eye(64), packed), weight.t())


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_constant_blocks(kernels: Kernels, value: float) -> None:
    packed = kernels.pack_linear(torch.full((40, 64), value), "float16")
    assert isinstance(packed, CpuLinear) and packed.storage in TYPES
    assert torch.equal(kernels.linear(torch.eye(64), packed), torch.full((64, 40), value))


def test_one_odd_value_is_enough_to_refuse(kernels: Kernels) -> None:
    for storage in TYPES:
        for bad in (1e-7, float("nan"), float("inf")):
            weight = quantised(storage, 70, 64)
            weight[69, 63] += bad
            packed = kernels.pack_linear(weight, "float32")
            assert isinstance(packed, CpuLinear) and packed.storage == "float32"


def test_ordinary_weights_keep_their_mode(kernels: Kernels) -> None:
    for mode in ("float32", "float16", "bfloat16"):
        packed = kernels.pack_linear(torch.randn(64, 64), mode)
        assert isinstance(packed, CpuLinear) and packed.storage == mode
