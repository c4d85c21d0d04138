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
from lorikeet_server.kernels import ROWS_AT_A_TIME, Filters, Kernels

CANDIDATES = 256


def take(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some rows, in ascending order and distinct; of all, no copy is made."""
    return tensor if rows.numel() == tensor.shape[0] else tensor[rows]


@dataclass(frozen=True, slots=True)
class Ways:
    """How the rows to draw are drawn, as indices of rows, each row in one of them."""

    plain: torch.Tensor  # without any filter
    tried: torch.Tensor  # from the candidates, which a small top-k says suffice
    nucleus: torch.Tensor  # by top-p alone, from all tokens
    whole: torch.Tensor  # from all tokens

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


def draw(
    kernels: Kernels, scores: torch.Tensor, filters: Filters, uniform: torch.Tensor, ways: Ways
) -> torch.Tensor:
    """Token `[rows]` of each row of `scores` `[rows, vocab]`, at `uniform` `[rows]` float64."""
    tokens = torch.empty(scores.shape[0], dtype=torch.int64, device=scores.device)
    among = ((ways.plain, _plain), (ways.nucleus, _nucleus), (ways.tried, _tried), (ways.whole, _whole))
    for rows, way in among:
        if not rows.numel():
            continue
        # Sorting takes 14 times the memory of the scores.
        for part in torch.split(rows, ROWS_AT_A_TIME) if way is _whole else (rows,):
            temperature, top_k, top_p, typical_p = (take(limit, part) for limit in filters[:4])
            by = Filters(temperature, top_k, top_p, typical_p, filters.any_typical)
            tokens[part] = way(kernels, take(scores, part), by, take(uniform, part))
    return tokens


def _plain(kernels: Kernels, scores: torch.Tensor, by: Filters, uniform: torch.Tensor) -> torch.Tensor:
    return kernels.invert(kernels.weigh(scores, by.temperature), uniform)


def _nucleus(kernels: Kernels, scores: torch.Tensor, by: Filters, uniform: torch.Tensor) -> torch.Tensor:
    return kernels.invert(kernels.keep_top_p(kernels.weigh(scores, by.temperature), by.top_p), uniform)


def _tried(kernels: Kernels, scores: torch.Tensor, by: Filters, uniform: torch.Tensor) -> torch.Tensor:
    best, ids = kernels.best_of(scores, CANDIDATES)
    ids, order = ids.sort(-1)
    index = _whole(kernels, best.gather(-1, order), by, uniform)
    return ids.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _whole(kernels: Kernels, scores: torch.Tensor, by: Filters, uniform: torch.Tensor) -> torch.Tensor:
    return kernels.invert(kernels.keep(scores, by), uniform)
