"""What reads a base product and the adapters' beside it, over dtype x width x rows, against the definition in
float32: on a GPU, and on a CPU under emulation."""

from __future__ import annotations

import pytest
import torch
from cuda_target import Target

from lorikeet_server.kernels import Product, select
from lorikeet_server.kernels.cuda import abi
from lorikeet_server.kernels.cuda.after_product import AfterProduct

DTYPES = [torch.bfloat16, torch.float16]
ULP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}  # of the number, at most
REFERENCE = select("reference")


@pytest.fixture
def kernels(target: Target) -> AfterProduct:
    return AfterProduct(target.library, target.device)


@pytest.mark.parametrize("activation", [abi.SILU, abi.GELU])
@pytest.mark.parametrize("width", [8, 72, 1024, 1032, 14336])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated(
    target: Target, kernels: AfterProduct, dtype: torch.dtype, width: int, activation: int
) -> None:
    for rows in (0, 1, 5) if target.emulated else (0, 1, 5, 64, 256):
        y, delta = (3 * torch.randn(2, rows, 2 * width)).to(target.device, dtype)
        before = y.clone()
        result = kernels.gated(y, delta, activation)
        of = REFERENCE.silu_mul if activation == abi.SILU else REFERENCE.gelu_mul
        expected = of(Product((y.double() + delta.double()).float().cpu()))
        assert result.dtype == dtype and torch.equal(y, before)
        torch.testing.assert_close(result.float().cpu(), expected, rtol=ULP[dtype], atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("width", [8, 72, 4096, 4104, abi.WIDEST_NORM])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_norm(
    target: Target, kernels: AfterProduct, dtype: torch.dtype, width: int, offset: float
) -> None:
    for rows in (0, 1, 3) if target.emulated else (0, 1, 3, 64, 256):
        x, delta, residual = torch.randn(3, rows, width).to(target.device, dtype)
        weight = torch.randn(width).to(target.device, dtype)
        exact = (x.double() + delta.double() + residual.double()).float().cpu()
        normed, _ = REFERENCE.add_rms_norm(
            Product(exact), torch.zeros_like(exact), weight.float().cpu(), 1e-5, offset
        )
        kernels.add_norm(x, delta, residual, weight, 1e-5, offset)
        torch.testing.assert_close(residual.float().cpu(), exact, rtol=ULP[dtype], atol=1e-6)
        torch.testing.assert_close(x.float().cpu(), normed, rtol=ULP[dtype], atol=1e-5)


def test_a_bad_row_stays_alone(target: Target, kernels: AfterProduct) -> None:
    x, delta, residual = torch.randn(3, 3, 64).to(target.device, torch.bfloat16)
    delta[1, 5] = torch.nan
    kernels.add_norm(x, delta, residual, residual[0].clone(), 1e-5, 0.0)
    assert x.isnan().all(1).tolist() == [False, True, False]
    gated = kernels.gated(x, delta, abi.SILU)
    assert gated.isnan().any(1).tolist() == [False, True, False]


def test_a_row_has_the_same_bits_beside_any_mates(target: Target, kernels: AfterProduct) -> None:
    x, delta, residual = torch.randn(3, 4, 272).to(target.device, torch.float16)
    weight, whole = residual[0].clone(), (x.clone(), residual.clone())
    gated = kernels.gated(x, delta, abi.GELU)
    kernels.add_norm(whole[0], delta, whole[1], weight, 1e-5, 1.0)
    for row in range(4):
        one = [each[row : row + 1].clone() for each in (x, delta, residual)]
        assert torch.equal(kernels.gated(one[0], one[1], abi.GELU)[0], gated[row])
        kernels.add_norm(one[0], one[1], one[2], weight, 1e-5, 1.0)
        assert torch.equal(one[0][0], whole[0][row]) and torch.equal(one[2][0], whole[1][row])


def test_what_does_not_fit_is_refused_before_a_launch(target: Target, kernels: AfterProduct) -> None:
    x = torch.randn(2, 64).to(target.device, torch.bfloat16)
    before = x.clone()
    for delta in (x[:1], x[:, :56], torch.cat((x, x), 1)[:, :64]):
        with pytest.raises(ValueError, match="must be"):
            kernels.gated(x, delta, abi.SILU)
        with pytest.raises(ValueError, match="must be"):
            kernels.add_norm(x, delta, x, x[0], 1e-5, 0.0)
    with pytest.raises(TypeError, match="must be"):
        kernels.gated(x, x.half(), abi.SILU)
    with pytest.raises(ValueError, match="SiLU or GELU"):
        kernels.gated(x, x, 2)
    odd = x[:, :56].contiguous()[:, :28].contiguous()
    with pytest.raises(ValueError, match="multiple of 8"):
        kernels.gated(odd, odd, abi.SILU)
    wide = torch.zeros(1, abi.WIDEST_NORM + 8).to(x)
    with pytest.raises(ValueError, match="a row is too wide"):
        kernels.add_norm(wide, wide.clone(), wide.clone(), wide[0], 1e-5, 0.0)
    assert torch.equal(x, before)
    assert not AfterProduct.norms(wide) and not AfterProduct.gates(odd) and AfterProduct.gates(x)


def test_a_product_is_its_sum() -> None:
    y, delta = torch.ones(2, 3), torch.full((2, 3), 2.0)
    assert Product(y).whole() is y
    assert Product(y, delta).whole() is y and torch.equal(y, torch.full((2, 3), 3.0))
