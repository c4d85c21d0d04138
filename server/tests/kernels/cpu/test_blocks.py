"""Weights from quantised files: recognised, kept in blocks. In float32 they equal their values to the bit;
in 16 bits the rows they meet become integers of as many, whose error is bounded."""

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

from lorikeet_server.kernels import Kernels, LinearMode
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
    packed = kernels.pack_linear(weight, "float32")
    assert isinstance(packed, CpuLinear)
    assert (packed.storage, packed.mode) == (storage, "float32")
    assert torch.equal(kernels.linear(torch.eye(shape[1]), packed), weight.t())
    nudged = torch.nn.functional.pad(weight, (0, 1), value=0.3)  # no multiple of 32: cannot be in blocks
    exact = kernels.pack_linear(nudged, "float32")
    assert isinstance(exact, CpuLinear) and exact.storage == "float32"
    for rows in (0, 1, 5, 12, 13, 97, 256):
        x = torch.randn(rows, shape[1])
        result = kernels.linear(x, packed)
        assert torch.equal(result, kernels.linear(torch.nn.functional.pad(x, (0, 1)), exact))


def rounding(weight: Tensor, x: Tensor) -> Tensor:
    """The most that rounding x to 16 bits, in blocks of 32, may change of a product, and float32 besides."""
    blocks = x.double().abs().unflatten(1, (-1, 32)).amax(2) / (2 * 32767)
    of_weights = weight.double().abs().unflatten(1, (-1, 32)).sum(2) * 2  # those of Q4_1 less their offset
    return blocks @ of_weights.t() + 1e-6 * (x.double().abs() @ weight.double().abs().t())


@pytest.mark.parametrize("storage", TYPES)
@pytest.mark.parametrize("mode", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 32), (32, 64), (33, 160), (100, 576), (64, 1536), (16, 12288)])
def test_rows_in_16_bits_are_as_good_as_they_can_be(
    kernels: Kernels, storage: str, mode: LinearMode, shape: tuple[int, int]
) -> None:
    weight = quantised(storage, *shape)
    packed = kernels.pack_linear(weight, mode)
    assert isinstance(packed, CpuLinear)
    assert (packed.storage, packed.mode) == (storage, mode)
    for rows in (0, 1, 3, 5, 8, 12, 13, 97, 256):
        x = torch.randn(rows, shape[1]) * torch.logspace(-3, 3, shape[1])  # a scale for each block, then
        error = kernels.linear(x, packed).double() - x.double() @ weight.double().t()
        assert (error.abs() <= rounding(weight, x)).all()


@pytest.mark.parametrize("storage", TYPES)
def test_rows_in_16_bits_are_off_by_a_hundred_thousandth(kernels: Kernels, storage: str) -> None:
    weight, x = quantised(storage, 200, 1536), torch.randn(64, 1536)
    expected = x.double() @ weight.double().t()
    error = kernels.linear(x, kernels.pack_linear(weight, "float16")).double() - expected
    assert error.square().mean().sqrt() < 5e-5 * expected.square().mean().sqrt()


@pytest.mark.parametrize("storage", TYPES)
@pytest.mark.parametrize("outliers", [(7,), (0, 64), (31, 40), (3, 4)])
def test_outliers_cost_the_others_no_precision(
    kernels: Kernels, storage: str, outliers: tuple[int, ...]
) -> None:
    """One in a block is kept apart; of two in a block, neither."""
    weight, x = quantised(storage, 40, 96), torch.randn(17, 96)
    others = x.clone()
    for column in outliers:
        x[:, column] = torch.randn(17).sign() * 3e4
        others[:, column] = 0.0
    result = kernels.linear(x, kernels.pack_linear(weight, "float16")).double()
    kept = others if len({column // 32 for column in outliers}) == len(outliers) else x
    allowed = rounding(weight, kept) + 1e-6 * (x.double().abs() @ weight.double().abs().t())
    assert ((result - x.double() @ weight.double().t()).abs() <= allowed).all()


@pytest.mark.parametrize("storage", TYPES)
def test_two_values_of_one_size_are_no_outliers(kernels: Kernels, storage: str) -> None:
    weight, x = quantised(storage, 40, 32), torch.zeros(4, 32)
    x[0, 3] = x[1, 3] = x[1, 20] = x[2, 8] = 50.0
    x[2, 9], x[3, 31] = -50.0, 1e-3
    result = kernels.linear(x, kernels.pack_linear(weight, "float16")).double()
    expected = x.double() @ weight.double().t()
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=50 * 1e-5)


@pytest.mark.parametrize("storage", TYPES)
def test_rows_in_16_bits_do_not_depend_on_their_batch(kernels: Kernels, storage: str) -> None:
    packed, x = kernels.pack_linear(quantised(storage, 100, 576), "float16"), torch.randn(200, 576)
    whole = kernels.linear(x, packed)
    for rows in (1, 2, 3, 4, 5, 8, 11, 12, 13, 25, 97, 100):
        assert torch.equal(kernels.linear(x[:rows].clone(), packed), whole[:rows]), rows
        assert torch.equal(kernels.linear(x[-rows:].clone(), packed), whole[-rows:]), rows


@pytest.mark.parametrize("storage", TYPES)
def test_a_row_that_is_not_finite_says_so_and_spoils_no_other(kernels: Kernels, storage: str) -> None:
    packed = kernels.pack_linear(quantised(storage, 40, 96), "float16")
    x = torch.randn(9, 96)
    good = kernels.linear(x, packed)
    for bad in (float("nan"), float("inf"), -float("inf")):
        for row, column in ((0, 0), (4, 95), (8, 37)):
            spoilt = x.clone()
            spoilt[row, column] = bad
            result = kernels.linear(spoilt, packed)
            others = [other for other in range(9) if other != row]
            assert torch.equal(result[others], good[others])
            assert not result[row].isfinite().any()


@pytest.mark.parametrize("storage", TYPES)
@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-31, 1e-29, 1e-20, 1e30])
def test_rows_of_any_size(kernels: Kernels, storage: str, size: float) -> None:
    weight, x = quantised(storage, 40, 96), torch.randn(5, 96) * size
    result = kernels.linear(x, kernels.pack_linear(weight, "float16")).double()
    error = (result - x.double() @ weight.double().t()).abs()
    assert (error <= rounding(weight, x) + 1e-28).all()


@pytest.mark.parametrize("storage", TYPES)
def test_fused_and_sliced_weights_are_recognised(kernels: Kernels, storage: str) -> None:
    """Projections are joined along the output and, with several ranks, cut along the input."""
    weight = torch.cat((quantised(storage, 48, 128), quantised(storage, 16, 128)))[:, 32:96]
    packed = kernels.pack_linear(weight, "float32")
    assert isinstance(packed, CpuLinear) and packed.storage == storage
    assert torch.equal(kernels.linear(torch.eye(64), packed), weight.t())


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_constant_blocks(kernels: Kernels, value: float) -> None:
    packed = kernels.pack_linear(torch.full((40, 64), value), "float32")
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
