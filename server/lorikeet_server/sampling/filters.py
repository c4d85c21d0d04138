"""Top-k, top-p and typical-p, and the draw from what they leave.

A row is drawn by inverting its cumulative distribution at one uniform number. Sorting a whole vocabulary
costs milliseconds a row on a CPU, and nearly every row keeps a few tokens, so rows are first tried on their
`CANDIDATES` best tokens. Whether that is enough depends on the row alone, never on its batch mates.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lorikeet_server.device.base import Device

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


def draw(
    device: Device,
    scores: torch.Tensor,
    filters: Filters,
    filtered: npt.NDArray[np.bool_],
    short: npt.NDArray[np.bool_],
) -> torch.Tensor:
    """Token `[rows]` of each row of `scores` `[rows, vocab]` (already divided by temperature).

    `filtered` marks the rows with any filter on, `short` those of them that may fit into the candidates. Both
    are known on the host, so nothing here waits for a device but the search for rows that did not fit (CPU
    only).
    """
    if not filtered.any():
        return _invert(scores.softmax(-1), filters.uniform)
    tokens = torch.empty(scores.shape[0], dtype=torch.int64, device=scores.device)
    if scores.device.type != "cpu" or scores.shape[1] <= CANDIDATES:
        short = np.zeros_like(short)
    plain, whole, tried = device.upload(
        np.flatnonzero(~filtered), np.flatnonzero(filtered & ~short), np.flatnonzero(filtered & short)
    )
    if plain.numel():
        tokens[plain] = _invert(scores[plain].softmax(-1), filters.uniform[plain])
    if tried.numel():
        chosen = filters.take(tried)
        subset = scores[tried]
        best, ids = subset.topk(CANDIDATES, dim=-1)
        probability = (best - subset.logsumexp(-1, keepdim=True)).exp()
        fits = (chosen.top_k > 0) & (chosen.top_k <= CANDIDATES)
        fits |= (chosen.top_k == 0) & (probability.sum(-1) >= chosen.top_p)
        tokens[tried] = _draw_sorted(best, ids, probability, chosen)
        whole = torch.cat((whole, tried[~fits]))
    if whole.numel():
        best, ids = scores[whole].sort(dim=-1, descending=True, stable=True)
        tokens[whole] = _draw_sorted(best, ids, best.softmax(-1), filters.take(whole))
    return tokens


def _draw_sorted(
    best: torch.Tensor, ids: torch.Tensor, probability: torch.Tensor, filters: Filters
) -> torch.Tensor:
    """Draws from rows sorted by falling score; `probability` is each candidate's share of the whole row."""
    keep = _top_k(best.shape[-1], filters.top_k)
    probability = probability * keep
    # Each filter sees the distribution that the one before it left, as in transformers' chain of warpers.
    limited = (filters.top_k > 0).unsqueeze(-1)
    probability = torch.where(limited, probability / probability.sum(-1, keepdim=True), probability)
    before = probability.cumsum(-1) - probability
    keep &= (before < filters.top_p.unsqueeze(-1)) | (filters.top_p >= 1).unsqueeze(-1)
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
