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
from lorikeet_server.kernels.top_p import cut

CANDIDATES = 256


@dataclass(slots=True)
class Filters:
    """Parameters `[rows]` of the rows to draw. Off: top_k 0, top_p 1, typical_p 1."""

    top_k: torch.Tensor
    top_p: torch.Tensor
    typical_p: torch.Tensor
    uniform: torch.Tensor  # float64
    any_typical: bool

    def take(self, rows: torch.Tensor) -> "Filters":
        parts = self.top_k[rows], self.top_p[rows], self.typical_p[rows], self.uniform[rows]
        return Filters(*parts, self.any_typical)


@dataclass(frozen=True, slots=True)
class Ways:
    """How the rows to draw are drawn, as indices of rows, each row in one of them."""

    plain: torch.Tensor  # without any filter
    tried: torch.Tensor  # from the candidates
    nucleus: torch.Tensor  # by top-p alone, from all tokens
    whole: torch.Tensor  # from all tokens, sorted
    surely: bool  # whether no row that is tried can need more than the candidates

    @staticmethod
    def of(
        top_k: npt.NDArray[np.int64],
        top_p: npt.NDArray[np.float32],
        typical_p: npt.NDArray[np.float32],
        vocab_size: int,
        parcel: Parcel,
        discrete: bool,
    ) -> "Ways":
        """From the filters `[rows]`.

        Sorting a whole vocabulary costs milliseconds a row, and nearly every row keeps a few tokens, so rows
        are first tried on their `CANDIDATES` best tokens. A small top-k says in advance that these suffice.
        For top-p the scores must say it, so that such rows are tried where asking is free, which it is not
        where a device is `discrete`.
        """
        filtered = (top_k > 0) | (top_p < 1) | (typical_p < 1)
        tried = (top_k > 0) & (top_k <= CANDIDATES)
        if not discrete:
            tried |= (top_k == 0) & (top_p < 1)
        if vocab_size <= CANDIDATES:
            tried[:] = False
        nucleus = ~tried & (top_p < 1) & (top_k == 0) & (typical_p >= 1)
        masks = ~filtered, tried, nucleus, filtered & ~tried & ~nucleus
        plain, first, second, third = (parcel.add(np.flatnonzero(mask)) for mask in masks)
        return Ways(plain, tried=first, nucleus=second, whole=third, surely=discrete)


def draw(kernels: Kernels, scores: torch.Tensor, filters: Filters, ways: Ways) -> torch.Tensor:
    """Token `[rows]` of each row of `scores` `[rows, vocab]`, divided by temperature, the best of them 0."""
    plain, tried, nucleus, whole = ways.plain, ways.tried, ways.nucleus, ways.whole
    if plain.numel() == scores.shape[0]:
        return _invert(scores.exp(), filters.uniform)
    tokens = torch.empty(scores.shape[0], dtype=torch.int64, device=scores.device)
    if plain.numel():
        tokens[plain] = _invert(scores[plain].exp(), filters.uniform[plain])
    if tried.numel():
        chosen, subset = filters.take(tried), scores[tried]
        best, ids = _first(subset) if ways.surely else subset.topk(CANDIDATES, dim=-1)
        total = _mass(subset)
        kept = _keep(best, total, chosen)
        ids, order = ids.sort(-1)
        index = _invert(kept.gather(-1, order), chosen.uniform)
        tokens[tried] = ids.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        if not ways.surely:
            # What equals the last candidate may not be among them.
            better = best.where(best.exp() > best[:, -1:].exp(), -torch.inf)
            misfit = (chosen.top_k == 0) & (_mass(better) < total * chosen.top_p)
            alone = chosen.typical_p >= 1
            nucleus = torch.cat((nucleus, tried[misfit & alone]))
            whole = torch.cat((whole, tried[misfit & ~alone]))
    if nucleus.numel():
        subset = scores[nucleus]
        probability = subset.exp() * (1 / _mass(subset)).float().unsqueeze(-1)
        kept = kernels.keep_top_p(probability, filters.top_p[nucleus])
        tokens[nucleus] = _invert(kept, filters.uniform[nucleus])
    if whole.numel():
        best, ids = scores[whole].sort(dim=-1, descending=True, stable=True)
        kept = _keep(best, _mass(best), filters.take(whole))
        tokens[whole] = _invert(torch.empty_like(kept).scatter_(-1, ids, kept), filters.uniform[whole])
    return tokens


def _mass(scores: torch.Tensor) -> torch.Tensor:
    """Probability `[rows]` relative to that of the best score, which is 0. In double precision its sums do
    not depend on their order, and so not on the number of rows or candidates."""
    return scores.exp().sum(-1, dtype=torch.float64)


def _first(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `CANDIDATES` of a stable sort by falling score, without the sort.

    Which of several equal scores a GPU's `topk` takes depends on the number of rows, and logits that were
    computed in 16 bits are often equal. So it is given no equals: bits that order as the scores do, then
    the token, the lowest first.
    """
    bits = (scores + 0.0).view(torch.int32)  # there is no -0 in the sum
    keys = (bits ^ (bits >> 31 & 0x7FFFFFFF)).long()  # the magnitude of a negative number counts downwards
    keys <<= 32
    keys |= torch.arange(scores.shape[-1] - 1, -1, -1, device=scores.device)
    ids = keys.topk(CANDIDATES, dim=-1).indices
    return scores.gather(-1, ids), ids


def _keep(best: torch.Tensor, total: torch.Tensor, filters: Filters) -> torch.Tensor:
    """Relative probabilities of rows sorted by falling score, 0 where the filters leave nothing; `total`
    `[rows]` is the mass of the whole rows."""
    keep = _top_k(best.shape[-1], filters.top_k)
    mass = best.exp() * keep
    # Each filter sees the distribution that the one before it left, as in transformers' chain of warpers.
    total = torch.where(filters.top_k > 0, mass.sum(-1, dtype=torch.float64), total)
    keep &= (mass >= cut(mass, filters.top_p * total)) | (filters.top_p >= 1).unsqueeze(-1)
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


def _invert(probability: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Index `[rows]` at which the cumulative distribution passes `uniform`. Never an entry of probability
    zero.

    Double precision: in single, the tail of a 100k vocabulary falls below the resolution of the sum.
    """
    cumulative = probability.cumsum(-1, dtype=torch.float64)
    target = uniform.unsqueeze(-1) * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    # Only a row of NaN gets past the end; its caller reports it, but the index must be a token.
    return found.clamp(max=probability.shape[-1] - 1)
