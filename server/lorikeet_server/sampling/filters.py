"""Top-k, top-p and typical-p, and the draw from what they leave.

A row is drawn by inverting its cumulative distribution at one uniform number. Sorting a whole vocabulary
costs milliseconds a row, and nearly every row keeps a few tokens, so rows are first tried on their
`CANDIDATES` best tokens. Whether that is enough depends on the row alone, never on its batch mates. A small
top-k says it in advance. For top-p alone the scores must say it, and a device that works while the host goes
on is not asked: there such rows are sorted.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lorikeet_server.device.base import Parcel

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
    whole: torch.Tensor  # from all tokens, sorted
    tried: torch.Tensor  # from the candidates
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
        """From the filters `[rows]`. Rows of which only their scores can say whether the candidates suffice
        are tried where asking is free, which it is not where a device is `discrete`."""
        filtered = (top_k > 0) | (top_p < 1) | (typical_p < 1)
        tried = (top_k > 0) & (top_k <= CANDIDATES)
        if not discrete:
            tried |= (top_k == 0) & (top_p < 1)
        if vocab_size <= CANDIDATES:
            tried[:] = False
        plain, whole, shortly = (
            parcel.add(np.flatnonzero(rows)) for rows in (~filtered, filtered & ~tried, tried)
        )
        return Ways(plain, whole, shortly, surely=discrete)


def draw(scores: torch.Tensor, filters: Filters, ways: Ways) -> torch.Tensor:
    """Token `[rows]` of each row of `scores` `[rows, vocab]` (already divided by temperature)."""
    plain, whole, tried = ways.plain, ways.whole, ways.tried
    if plain.numel() == scores.shape[0]:
        return _invert(scores.softmax(-1), filters.uniform)
    tokens = torch.empty(scores.shape[0], dtype=torch.int64, device=scores.device)
    if plain.numel():
        tokens[plain] = _invert(scores[plain].softmax(-1), filters.uniform[plain])
    if tried.numel():
        chosen, subset = filters.take(tried), scores[tried]
        best, ids = _first(subset) if ways.surely else subset.topk(CANDIDATES, dim=-1)
        total = _mass(subset)
        tokens[tried] = _draw_sorted(best, ids, total, chosen)
        if not ways.surely:
            fits = (chosen.top_k > 0) | (_mass(best) >= total * chosen.top_p)
            whole = torch.cat((whole, tried[~fits]))
    if whole.numel():
        best, ids = scores[whole].sort(dim=-1, descending=True, stable=True)
        tokens[whole] = _draw_sorted(best, ids, _mass(best), filters.take(whole))
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


def _draw_sorted(
    best: torch.Tensor, ids: torch.Tensor, total: torch.Tensor, filters: Filters
) -> torch.Tensor:
    """Draws from rows sorted by falling score; `total` `[rows]` is the mass of the whole rows."""
    keep = _top_k(best.shape[-1], filters.top_k)
    mass = best.exp() * keep
    # Each filter sees the distribution that the one before it left, as in transformers' chain of warpers.
    reached = mass.cumsum(-1, dtype=torch.float64)
    total = torch.where(filters.top_k > 0, reached[:, -1], total)
    bound = (filters.top_p * total).unsqueeze(-1)
    keep &= (reached - mass < bound) | (filters.top_p >= 1).unsqueeze(-1)
    if filters.any_typical:
        keep &= _typical(best.masked_fill(~keep, -torch.inf), filters.typical_p)
    index = _invert(best.masked_fill(~keep, -torch.inf).softmax(-1), filters.uniform)
    return ids.gather(-1, index.unsqueeze(-1)).squeeze(-1)


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
