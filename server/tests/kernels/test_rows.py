"""Norms, rotation, activation and the arg max, row by row."""

import math

import pytest
import torch

from lorikeet_server.kernels import Kernels, Product

WIDTHS = [1, 7, 16, 33, 576, 1536]


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [0, 1, 9, 257])
def test_norms(kernels: Kernels, reference: Kernels, width: int, rows: int, offset: float) -> None:
    x, residual, weight = torch.randn(rows, width), torch.randn(rows, width) * 5, torch.randn(width)
    scale = 1e-5, offset
    expected = reference.rms_norm(x, weight, *scale)
    torch.testing.assert_close(kernels.rms_norm(x, weight, *scale), expected, rtol=2e-6, atol=2e-6)
    normed, added = kernels.add_rms_norm(Product(x), residual.clone(), weight, *scale)
    expected, expected_added = reference.add_rms_norm(Product(x), residual, weight, *scale)
    torch.testing.assert_close(normed, expected, rtol=2e-6, atol=2e-6)
    assert torch.equal(added, expected_added)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [0, 1, 9, 257])
def test_silu_mul(kernels: Kernels, reference: Kernels, width: int, rows: int) -> None:
    gate_up = torch.randn(rows, 2 * width) * 20
    torch.testing.assert_close(
        kernels.silu_mul(Product(gate_up)), reference.silu_mul(Product(gate_up)), rtol=3e-6, atol=1e-30
    )


def test_gelu_mul(kernels: Kernels, reference: Kernels) -> None:
    gate_up = torch.randn(9, 2 * 33) * 20
    torch.testing.assert_close(kernels.gelu_mul(Product(gate_up)), reference.gelu_mul(Product(gate_up)))


def test_silu_mul_at_the_ends(kernels: Kernels) -> None:
    gate = torch.tensor([-1e4, -100.0, -0.0, 0.0, 100.0, 1e4, math.inf, math.nan])
    result = kernels.silu_mul(Product(torch.cat((gate, torch.ones(8))).unsqueeze(0)))[0]
    assert result[:2].abs().max() < 1e-30
    assert result[2:7].tolist() == [0.0, 0.0, 100.0, 1e4, math.inf]
    assert result[7].isnan()


@pytest.mark.parametrize("columns", [1, 5, 100, 8192, 8193, 49152])
def test_greedy(kernels: Kernels, reference: Kernels, columns: int) -> None:
    for rows in (0, 1, 9):
        logits = torch.randn(rows, columns) * 8
        result, expected = kernels.greedy(logits), reference.greedy(logits)
        assert torch.equal(result.tokens, expected.tokens)
        torch.testing.assert_close(result.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result.logsumexp, expected.logsumexp, rtol=1e-6, atol=1e-5)


def test_greedy_takes_the_first_of_equals(kernels: Kernels) -> None:
    logits = torch.zeros(2, 20000)
    logits[0, [300, 301, 12000]] = 4.0
    assert kernels.greedy(logits).tokens.tolist() == [300, 0]


@pytest.mark.parametrize("place", [0, 8191, 8192, 9999])
def test_greedy_marks_bad_rows(kernels: Kernels, place: int) -> None:
    logits = torch.randn(4, 10000)
    logits[0, place] = math.nan
    logits[1, place] = math.inf
    logits[2] = -math.inf
    logits[3, :9000] = -math.inf  # masked, but fine
    result = kernels.greedy(logits)
    assert result.logsumexp.isfinite().tolist() == [False, False, False, True]
    assert all(0 <= token < 10000 for token in result.tokens.tolist())
    assert int(result.tokens[3]) == 9000 + int(logits[3, 9000:].argmax())


@pytest.mark.parametrize(("rows", "width"), [(64, 576), (9, 7)])
def test_a_row_does_not_depend_on_its_batch(kernels: Kernels, rows: int, width: int) -> None:
    x, weight = torch.randn(rows, 2 * width), torch.randn(2 * width)
    assert torch.equal(kernels.rms_norm(x, weight, 1e-5)[3:4], kernels.rms_norm(x[3:4].clone(), weight, 1e-5))
    assert torch.equal(kernels.silu_mul(Product(x))[3:4], kernels.silu_mul(Product(x[3:4].clone())))
    assert torch.equal(kernels.greedy(x).logsumexp[3:4], kernels.greedy(x[3:4].clone()).logsumexp)


def test_wrong_arguments(kernels: Kernels) -> None:
    x = torch.randn(3, 8)
    with pytest.raises(ValueError, match="x must be"):
        kernels.rms_norm(x, torch.ones(7), 1e-5)
    with pytest.raises(ValueError, match="residual must be"):
        kernels.add_rms_norm(Product(x), torch.ones(2, 8), torch.ones(8), 1e-5)
    with pytest.raises(ValueError, match="even"):
        kernels.silu_mul(Product(torch.randn(3, 7)))
    with pytest.raises(TypeError):
        kernels.silu_mul(Product(x.double()))
    with pytest.raises(ValueError, match="column"):
        kernels.greedy(torch.empty(3, 0))
