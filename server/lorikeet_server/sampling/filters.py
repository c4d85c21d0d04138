"""Top-k, top-p and typical-p, and the draw from what they leave.

A row is drawn by inverting its cumulative distribution, in the order of the tokens, at one uniform number.
What its filters leave is found in one of the ways of `Ways`, all with the same result: top-k leaves as many
tokens, the lowest of equals; the others leave whatever equals the last that they keep. Which way depends on
the row alone, never on its batch mates.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lorikeet_server.device.base import Parcel
from lorikeet_server.kernels import Kernels
from lorikeet_server.kernels.torch_row_ops import cut, relative

CANDIDATES = 256


def take(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some rows, in ascending order and distinct; of all, no copy is made."""
    return tensor if rows.numel() == tensor.shape[0] else tensor[rows]


@dataclass(slots=True)
class Filters:
    """Parameters `[rows]` of the rows to draw. Off: top_k 0, top_p 1, typical_p 1."""

    temperature: torch.Tensor  # above 0
    top_k: torch.Tensor
    top_p: torch.Tensor
    typical_p: torch.Tensor
    uniform: torch.Tensor  # float64
    any_typical: bool

    def take(self, rows: torch.Tensor) -> "Filters":
        numbers = self.temperature, self.top_k, self.top_p, self.typical_p, self.uniform
        temperature, top_k, top_p, typical_p, uniform = (take(each, rows) for each in numbers)
        return Filters(temperature, top_k, top_p, typical_p, uniform, self.any_typical)


@dataclass(frozen=True, slots=True)
class Ways:
    """How the rows to draw are drawn, as indices of rows, each row in one of them."""

    plain: torch.Tensor  # without any filter
    tried: torch.Tensor  # from the candidates, which a small top-k says suffice
    nucleus: torch.Tensor  # by top-p alone, from all tokens
    whole: torch.Tensor  # from all tokens, sorted, which costs milliseconds a row

    @staticmethod
    def of(
        top_k: npt.NDArray[np.int64],
        top_p: npt.NDArray[np.float32],
        typical_p: npt.NDArray[np.float32],
        vocab_size: int,
        parcel: Parcel,
    ) -> "Ways":
        """From the filters `[rows]`."""
        filtered = (top_k > 0) | (top_p < 1) | (typical_p < 1)
        tried = (top_k > 0) & (top_k <= CANDIDATES) & (vocab_size > CANDIDATES)
        nucleus = (top_p < 1) & (top_k == 0) & (typical_p >= 1)
        masks = ~filtered, tried, nucleus, filtered & ~tried & ~nucleus
        return Ways(*(parcel.add(np.flatnonzero(mask)) for mask in masks))


def draw(kernels: Kernels, scores: torch.Tensor, filters: Filters, ways: Ways) -> torch.Tensor:
    """Token `[rows]` of each row of `scores` `[rows, vocab]`."""
    tokens = torch.empty(scores.shape[0], dtype=torch.int64, device=scores.device)
    among = ((ways.plain, _plain), (ways.nucleus, _nucleus), (ways.tried, _tried), (ways.whole, _whole))
    for rows, way in among:
        if rows.numel():
            tokens[rows] = way(kernels, take(scores, rows), filters.take(rows))
    return tokens


def _plain(kernels: Kernels, scores: torch.Tensor, filters: Filters) -> torch.Tensor:
    return kernels.invert(kernels.weigh(scores, filters.temperature), filters.uniform)


def _nucleus(kernels: Kernels, scores: torch.Tensor, filters: Filters) -> torch.Tensor:
    kept = kernels.keep_top_p(kernels.weigh(scores, filters.temperature), filters.top_p)
    return kernels.invert(kept, filters.uniform)


def _tried(kernels: Kernels, scores: torch.Tensor, filters: Filters) -> torch.Tensor:
    best, ids = kernels.best_of(scores, CANDIDATES)
    kept = _keep(relative(best, filters.temperature), filters)
    ids, order = ids.sort(-1)
    index = kernels.invert(kept.gather(-1, order), filters.uniform)
    return ids.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _whole(kernels: Kernels, scores: torch.Tensor, filters: Filters) -> torch.Tensor:
    best, ids = relative(scores, filters.temperature).sort(dim=-1, descending=True, stable=True)
    kept = _keep(best, filters)
    return kernels.invert(torch.empty_like(kept).scatter_(-1, ids, kept), filters.uniform)


def _keep(best: torch.Tensor, filters: Filters) -> torch.Tensor:
    """Relative probabilities of rows sorted by falling score, 0 where the filters leave nothing. The rows are
    whole, or as much of them as top-k leaves."""
    keep = _top_k(best.shape[-1], filters.top_k)
    mass = best.exp() * keep
    # Each filter sees the distribution that the one before it left, as in transformers' chain of warpers.
    share = filters.top_p * mass.sum(-1, dtype=torch.float64)
    keep &= (mass >= cut(mass, share)) | (filters.top_p >= 1).unsqueeze(-1)
    if filters.any_typical:
        keep &= _typical(best.masked_fill(~keep, -torch.inf), filters.typical_p)
    return mass * keep


def _top_k(width: int, top_k: torch.Tensor) -> torch.Tensor:
    rank = torch.arange(width, device=top_k.device)
    return (rank < top_k.unsqueeze(-1)) | (top_k == 0).unsqueeze(-1)


def _typical(scores: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Keeps the tokens whose surprise is nearest to the entropy, up to `mass`; all of them where mass is
    1."""
    logprob = scores.log_softmax(-1)
    probability = logprob.exp()
    entropy = -(logprob * probability).nansum(-1, keepdim=True)
    distance = (-logprob - entropy).abs()
    ordered, index = distance.sort(dim=-1, stable=True)
    below = probability.gather(-1, index).cumsum(-1) < mass.unsqueeze(-1)
    last = below.sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    return (distance <= ordered.gather(-1, last)) | (mass >= 1).unsqueeze(-1)
