"""`Kernels.keep_top_p` in torch: the definition, and what serves where nothing faster is at hand."""

import torch
from torch import Tensor


def keep_top_p(probability: Tensor, top_p: Tensor) -> Tensor:
    """See `ops.Kernels`. Sorts whole rows, and takes their sums in double precision."""
    best, _ = probability.sort(dim=-1, descending=True)
    return probability.where(probability >= cut(best, top_p * best.sum(-1, dtype=torch.float64)), 0)


def cut(best: Tensor, share: Tensor) -> Tensor:
    """The value [T, 1] at which rows that fall, `best` [T, n], have added up to `share` f64 [T]; the last one
    if they never do."""
    before = best.cumsum(-1, dtype=torch.float64) - best
    within = (before < share.unsqueeze(-1)).sum(-1, keepdim=True)
    return best.gather(-1, (within - 1).clamp(min=0))
