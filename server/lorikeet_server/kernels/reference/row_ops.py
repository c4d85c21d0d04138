"""`RowOps` in torch: the definition, and what serves where nothing faster is at hand."""

import torch
from torch import Tensor

from lorikeet_server.kernels.row_ops import ROWS_AT_A_TIME, Filters, Penalties


class TorchRowOps:
    """See `RowOps`. Sums are taken in double precision: in single, the tail of a 100k vocabulary falls below
    their resolution."""

    def penalise(self, scores: Tensor, by: Penalties) -> None:
        parts = (torch.split(each, ROWS_AT_A_TIME) for each in (by.rows, by.lanes, by.factors))
        for rows, lanes, factors in zip(*parts, strict=True):
            repetition, frequency, presence = factors.unsqueeze(-1).unbind(1)
            count = by.output[lanes]
            score = scores[rows]
            repeated = torch.where(score < 0, score * repetition, score / repetition)
            score = torch.where(by.seen[lanes], repeated, score)
            score -= frequency * count + presence * (count > 0)
            scores[rows] = score

    def weigh(self, scores: Tensor, temperature: Tensor) -> Tensor:
        return relative(scores, temperature).exp()

    def keep_top_p(self, weights: Tensor, top_p: Tensor) -> Tensor:
        kept = torch.empty_like(weights)
        parts = (torch.split(each, ROWS_AT_A_TIME) for each in (kept, weights, top_p))
        for to, part, share in zip(*parts, strict=True):
            best, _ = part.sort(dim=-1, descending=True)
            to.copy_(part.where(part >= _cut(best, best, share), 0))
        return kept

    def keep(self, scores: Tensor, by: Filters) -> Tensor:
        best, ids = relative(scores, by.temperature).sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(best.shape[-1], device=best.device)
        mass = best.exp() * ((rank < by.top_k.unsqueeze(-1)) | (by.top_k == 0).unsqueeze(-1))
        mass *= (mass >= _cut(mass, mass, by.top_p)) | (by.top_p >= 1).unsqueeze(-1)
        if by.any_typical:
            mass *= _typical(best, mass, by.typical_p) | (by.typical_p >= 1).unsqueeze(-1)
        return torch.empty_like(mass).scatter_(-1, ids, mass)

    def best_of(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        # Which of several equal scores a GPU's `topk` takes depends on the number of rows, and logits that
        # were computed in 16 bits are often equal. So it is given no equals: bits that order as the scores
        # do, then the token, the lowest first.
        bits = (scores + 0.0).view(torch.int32)  # there is no -0 in the sum
        keys = (bits ^ (bits >> 31 & 0x7FFFFFFF)).long()  # a negative number's magnitude counts downwards
        keys <<= 32
        keys |= torch.arange(scores.shape[-1] - 1, -1, -1, device=scores.device)
        ids = keys.topk(count, dim=-1).indices
        return scores.gather(-1, ids), ids

    def invert(self, weights: Tensor, uniform: Tensor) -> Tensor:
        cumulative = weights.double().cumsum_(-1)  # by `dtype` it would be added up in a second copy
        target = uniform.unsqueeze(-1) * cumulative[:, -1:]
        found = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        return found.clamp(max=weights.shape[-1] - 1)


def relative(scores: Tensor, temperature: Tensor) -> Tensor:
    """Scores `[T, V]` less the best of their row, over its temperature: a tiny one then gives probability
    zero and not NaN."""
    return (scores - scores.amax(-1, keepdim=True)) / temperature.unsqueeze(-1)


def _cut(keys: Tensor, mass: Tensor, share: Tensor) -> Tensor:
    """The key [T, 1] at which `mass` [T, n], in the order of `keys` [T, n], has added up to `share` [T] of
    its whole; the last one if it never does."""
    reached = mass.cumsum(-1, dtype=torch.float64)
    within = (reached - mass < (share * reached[:, -1]).unsqueeze(-1)).sum(-1, keepdim=True)
    return keys.gather(-1, (within - 1).clamp(min=0))


def _typical(relative: Tensor, mass: Tensor, share: Tensor) -> Tensor:
    """Which tokens [T, n] typical-p leaves of `mass`, the exponential of `relative` or 0.

    A token's surprise less the entropy is the mean of `relative` less its own: the logarithm of the whole
    stands in both.
    """
    held = mass > 0
    mean = (relative * mass).where(held, 0).sum(-1, dtype=torch.float64) / mass.sum(-1, dtype=torch.float64)
    distance = (relative - mean.unsqueeze(-1)).abs().float().masked_fill(~held, torch.inf)
    ordered, index = distance.sort(dim=-1, stable=True)
    return distance <= _cut(ordered, mass.gather(-1, index), share)
