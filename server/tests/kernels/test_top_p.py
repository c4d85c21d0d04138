"""What top-p leaves of rows of probabilities."""

import pytest
import torch

from lorikeet_server.kernels import Kernels, select


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


def test_every_row_by_itself(reference: Kernels) -> None:
    probability = (torch.randn(9, 3000) * 4).softmax(-1)
    top_p = torch.linspace(0.05, 0.99, 9)
    left = reference.keep_top_p(probability, top_p)
    for row in range(9):
        alone = reference.keep_top_p(probability[row : row + 1], top_p[row : row + 1])[0]
        assert torch.equal(alone, left[row])
        assert alone.sum() >= top_p[row] > alone.sum() - alone[alone > 0].min()


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
