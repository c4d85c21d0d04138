"""Packed linears: equal to torch for every mode and shape, and a row's bits never depend on its batch."""

import pytest
import torch

from lorikeet_server.kernels import Kernels, LinearMode

MODES: tuple[LinearMode, ...] = ("float32", "float16", "bfloat16")
SHAPES = [(1, 1), (32, 16), (33, 17), (31, 64), (96, 577), (576, 576), (100, 1536)]  # out, in


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 9, 13, 64, 255, 256, 257])
def test_matches_the_reference(kernels: Kernels, reference: Kernels, mode: LinearMode, rows: int) -> None:
    for out_features, in_features in SHAPES:
        weight, x = torch.randn(out_features, in_features), torch.randn(rows, in_features)
        result = kernels.linear(x, kernels.pack_linear(weight, mode))
        expected = reference.linear(x, reference.pack_linear(weight, mode))
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=2e-5 * in_features**0.5)


@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16])
def test_float32_mode_is_exact(kernels: Kernels, given: torch.dtype) -> None:
    weight = torch.randn(64, 48).to(given)
    result = kernels.linear(torch.eye(48), kernels.pack_linear(weight, "float32"))
    assert torch.equal(result, weight.float().t())


@pytest.mark.parametrize("in_features", [576, 1536, 12288])
def test_rounding_errors_do_not_grow_with_the_sum(kernels: Kernels, in_features: int) -> None:
    """Of one long sum they would be 4e-7, 7e-7 and 2e-6 of the result."""
    weight, x = torch.randn(64, in_features), torch.randn(9, in_features)
    expected = x.double() @ weight.double().t()
    error = kernels.linear(x, kernels.pack_linear(weight, "float32")) - expected
    assert error.square().mean().sqrt() < 3.5e-7 * expected.square().mean().sqrt()


@pytest.mark.parametrize("mode", MODES)
def test_a_row_does_not_depend_on_its_batch(kernels: Kernels, mode: LinearMode) -> None:
    packed = kernels.pack_linear(torch.randn(100, 1100), mode)
    x = torch.randn(260, 1100)
    whole = kernels.linear(x, packed)
    for rows in (1, 2, 3, 5, 8, 11, 12, 13, 25, 100):
        assert torch.equal(kernels.linear(x[:rows].clone(), packed), whole[:rows]), rows
        assert torch.equal(kernels.linear(x[-rows:].clone(), packed), whole[-rows:]), rows


def test_special_weights_survive(kernels: Kernels) -> None:
    special = torch.tensor([[6e-8, -6.1e-5, 0.0, 65504.0, -1.0]]).half()  # two denormals, the largest
    result = kernels.linear(torch.eye(5), kernels.pack_linear(special, "float16"))
    assert torch.equal(result.flatten(), special[0].float())


def test_refuses_what_it_cannot_compute(kernels: Kernels) -> None:
    packed = kernels.pack_linear(torch.randn(8, 4), "float16")
    with pytest.raises(ValueError, match="x must be"):
        kernels.linear(torch.randn(2, 5), packed)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.linear(torch.randn(4, 2).t(), packed)
    with pytest.raises(TypeError, match="float32"):
        kernels.linear(torch.randn(2, 4).half(), packed)
    with pytest.raises(ValueError, match="float16"):
        kernels.pack_linear(torch.full((1, 1), 1e6), "float16")
    with pytest.raises(ValueError, match="shape"):
        kernels.pack_linear(torch.randn(8), "float32")
