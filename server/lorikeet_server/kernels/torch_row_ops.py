"""`RowOps` in torch: the definition, and what serves where nothing faster is at hand."""

import torch
from torch import Tensor

from lorikeet_server.kernels.row_ops import Penalties


class TorchRowOps:
    """See `RowOps`. Sums are taken in double precision: in single, the tail of a 100k vocabulary falls below
    their resolution."""

    def penalise(self, scores: Tensor, by: Penalties) -> None:
        repetition, frequency, presence = by.factors[:, 0:1], by.factors[:, 1:2], by.factors[:, 2:3]
        count = by.output[by.lanes]
        score = scores[by.rows]
        repeated = torch.where(score < 0, score * repetition, score / repetition)
        score = torch.where(by.seen[by.lanes], repeated, score)
        score -= frequency * count + presence * (count > 0)
        scores[by.rows] = score

    def weigh(self, scores: Tensor, temperature: Tensor) -> Tensor:
        return relative(scores, temperature).exp()

    def keep_top_p(self, weights: Tensor, top_p: Tensor) -> Tensor:
        best, _ = weights.sort(dim=-1, descending=True)
        return weights.where(weights >= cut(best, top_p * best.sum(-1, dtype=torch.float64)), 0)

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
        cumulative = weights.cumsum(-1, dtype=torch.float64)
        target = uniform.unsqueeze(-1) * cumulative[:, -1:]
        found = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        return found.clamp(max=weights.shape[-1] - 1)


def relative(scores: Tensor, temperature: Tensor) -> Tensor:
    """Scores `[T, V]` less the best of their row, over its temperature: a tiny one then gives probability
    zero and not NaN."""
    return (scores - scores.amax(-1, keepdim=True)) / temperature.unsqueeze(-1)


def cut(best: Tensor, share: Tensor) -> Tensor:
    """The value [T, 1] at which rows that fall, `best` [T, n], have added up to `share` f64 [T]; the last one
    if they never do."""
    before = best.cumsum(-1, dtype=torch.float64) - best
    within = (before < share.unsqueeze(-1)).sum(-1, keepdim=True)
    return best.gather(-1, (within - 1).clamp(min=0))
