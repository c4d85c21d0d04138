"""What sampling does with whole rows: weights, what top-p leaves of them, draws."""

import pytest
import torch

from lorikeet_server.kernels import Filters, Kernels, Penalties, select


def kept(kernels: Kernels, probability: list[float], top_p: float) -> list[int]:
    left = kernels.keep_top_p(torch.tensor([probability]), torch.tensor([top_p]))
    return left[0].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.001, [3]),
        (0.5, [3]),
        (0.51, [1, 3, 4]),
        (0.8, [1, 3, 4]),
        (0.88, [0, 1, 3, 4]),
        (1.0, [0, 1, 3, 4]),
    ],
)
def test_as_few_as_add_up_and_what_equals_the_last(
    kernels: Kernels, reference: Kernels, top_p: float, expected: list[int]
) -> None:
    probability = [0.125, 0.1875, 0.0, 0.5, 0.1875]
    assert kept(kernels, probability, top_p) == kept(reference, probability, top_p) == expected


@pytest.mark.parametrize("spread", [0.01, 4.0, 40.0])
def test_every_row_by_itself(kernels: Kernels, reference: Kernels, spread: float) -> None:
    probability = (torch.randn(9, 3000) * spread).softmax(-1)
    top_p = torch.linspace(0.05, 0.99, 9)
    left = kernels.keep_top_p(probability, top_p)
    assert torch.equal(left, reference.keep_top_p(probability, top_p))
    for row in range(9):
        alone = kernels.keep_top_p(probability[row : row + 1], top_p[row : row + 1])[0]
        assert torch.equal(alone, left[row])
        assert alone.sum() >= top_p[row] > alone.sum() - alone[alone > 0].min()


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("tied", [False, True])
def test_filters_leave_what_the_reference_leaves(
    kernels: Kernels, reference: Kernels, spread: float, tied: bool
) -> None:
    scores = torch.randn(36, 3000) * spread
    if tied:
        scores = (scores * 4 / spread).round() * spread / 4
    scores[::5, ::3] = -torch.inf
    every = torch.cartesian_prod(
        torch.tensor([0.0, 1, 300, 2999]), torch.tensor([1.0, 0.5, 0.95]), torch.tensor([1.0, 0.2, 0.9])
    )
    top_k, top_p, typical_p = every.T.contiguous()
    by = Filters(torch.linspace(0.5, 2, 36), top_k.long(), top_p, typical_p, any_typical=True)
    left, expected = kernels.keep(scores, by), reference.keep(scores, by)
    assert torch.equal(left > 1e-37, expected > 1e-37)  # below, weights may be 0
    torch.testing.assert_close(left, expected, rtol=1e-5, atol=1e-37)
    for row in range(36):
        alone = Filters(*(limit[row : row + 1] for limit in by[:4]), any_typical=True)  # type: ignore[misc]
        assert torch.equal(kernels.keep(scores[row : row + 1], alone)[0], left[row])


def test_top_k_leaves_the_lowest_of_equals(kernels: Kernels) -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, -1.0, 1.0, 2.0]])
    for top_k, expected in (
        (1, [1]),
        (2, [1, 5]),
        (3, [0, 1, 5]),
        (4, [0, 1, 2, 5]),
        (6, [0, 1, 2, 3, 4, 5]),
    ):
        by = Filters(torch.ones(1), torch.tensor([top_k]), torch.ones(1), torch.ones(1), any_typical=False)
        assert kernels.keep(scores, by)[0].nonzero().flatten().tolist() == expected


def test_typical_p_leaves_the_nearest_to_the_entropy(kernels: Kernels) -> None:
    """And not the likeliest: of these, whose entropy is 1.36, it has a surprise of 0.69, the next of 1.61."""
    probability = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1]])
    for typical_p, expected in ((0.1, [1]), (0.3, [0, 1]), (0.7, [0, 1]), (0.71, [0, 1, 2, 3, 4])):
        limits = torch.zeros(1, dtype=torch.int64), torch.ones(1), torch.tensor([typical_p])
        left = kernels.keep(probability.log(), Filters(torch.ones(1), *limits, any_typical=True))
        assert left[0].nonzero().flatten().tolist() == expected


def test_each_token_has_its_share(kernels: Kernels) -> None:
    probability = torch.tensor([[0.0, 1.0, 2.0, 0.0, 5.0, 0.0]]).repeat(9, 1)
    uniform = [0.0, 0.1, 0.1249, 0.1251, 0.3, 0.3749, 0.3751, 0.9, 1 - 2**-53]
    index = kernels.invert(probability, torch.tensor(uniform, dtype=torch.float64))
    assert index.tolist() == [1, 1, 1, 2, 2, 2, 4, 4, 4]


def test_long_rows_are_those_of_the_reference(kernels: Kernels, reference: Kernels) -> None:
    for columns in (1, 3, 1023, 1025, 50_000):
        probability = (torch.randn(33, columns) * 4).exp()
        probability[:, 1::3] = 0.0
        uniform = torch.rand(33).double()
        index = kernels.invert(probability, uniform)
        assert torch.equal(index, reference.invert(probability, uniform))
        assert (probability.gather(1, index.unsqueeze(1)) > 0).all()


def test_rows_that_are_not_numbers_give_a_token(kernels: Kernels) -> None:
    probability = torch.full((2, 2000), torch.nan)
    probability[1] = 0.0
    index = kernels.invert(probability, torch.tensor([0.5, 0.5]).double())
    assert ((index >= 0) & (index < 2000)).all()


@pytest.mark.parametrize("unit", [1e-42, 0.25, 4.0])
@pytest.mark.parametrize("count", [1, 256, 1000])
def test_the_best_are_those_of_a_stable_sort(kernels: Kernels, unit: float, count: int) -> None:
    scores = torch.randn(50, 1000).round() * unit * torch.tensor([[1.0], [-1.0]]).repeat(25, 1)
    scores[::5, ::3] = -torch.inf
    scores[1] = 0.0
    assert (scores == 0).any() and (scores.signbit() & (scores == 0)).any()
    best, ids = kernels.best_of(scores, count)
    expected = scores.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(ids, expected.indices[:, :count])
    assert torch.equal(best, expected.values[:, :count])


def test_penalties_are_those_of_the_reference(kernels: Kernels, reference: Kernels) -> None:
    scores, lanes = torch.randn(6, 1003), torch.tensor([2, 0, 1])
    output = torch.randint(0, 3, (4, 1003), dtype=torch.int32)
    factors = torch.tensor([[1.3, 0.0, 0.0], [1.0, 0.4, 0.0], [0.8, -0.3, 0.7]])
    by = Penalties(
        torch.tensor([4, 1, 2]), lanes, factors, output, (output > 0) | (torch.rand(4, 1003) > 0.8)
    )
    expected = scores.clone()
    reference.penalise(expected, by)
    before = scores.clone()
    kernels.penalise(scores, by)
    torch.testing.assert_close(scores, expected)
    assert torch.equal(scores[[0, 3, 5]], before[[0, 3, 5]])


def test_weights_are_relative_to_the_best(kernels: Kernels, reference: Kernels) -> None:
    for columns in (1, 15, 1000):
        scores = torch.randn(5, columns) * 5
        scores[:, 2::7] = -torch.inf
        temperature = torch.tensor([1.0, 0.3, 5.0, 1e-30, 1e-42])
        weights = kernels.weigh(scores, temperature)
        torch.testing.assert_close(weights, reference.weigh(scores, temperature), rtol=1e-5, atol=1e-37)
        assert weights.amax(-1).tolist() == [1.0] * 5


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [200, 32000, 128256])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_on_a_device(vocab: int, spread: float) -> None:
    """What is left is likelier than what is not. It is what the reference leaves, but for one value where a
    sum comes to just `top_p`. A row has the same bits alone."""
    device = torch.device("cuda", torch.cuda.current_device())
    kernels = select("cuda", device=device, dtype=torch.bfloat16)
    probability = (torch.randn(33, vocab) * spread).bfloat16().float().softmax(-1)
    top_p = torch.linspace(0.05, 0.99, 33)
    left = kernels.keep_top_p(probability.to(device), top_p.to(device))
    expected = select("reference").keep_top_p(probability, top_p) > 0
    mask = left.cpu() > 0
    assert (probability.where(mask, 2).amin(-1) > probability.where(~mask, 0).amax(-1)).all()
    for row in range(33):
        assert len(probability[row, mask[row] != expected[row]].unique()) <= 1
    for row in (0, 7, 32):
        alone = kernels.keep_top_p(probability[row : row + 1].to(device), top_p[row : row + 1].to(device))
        assert torch.equal(alone[0], left[row])
