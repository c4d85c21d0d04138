"""One token per row, with log-probabilities of the model's own distribution."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lorikeet_server.kernels import Greedy, Kernels
from lorikeet_server.sampling.filters import draw, take
from lorikeet_server.sampling.params import SlotParams
from lorikeet_server.sampling.plan import DrawnRows, SamplingPlan


@dataclass(slots=True)
class Sampled:
    """Results on the device, one entry per row. `finite` is false for a row whose logits hold NaN or
    infinity."""

    tokens: torch.Tensor  # [rows] int64
    logprobs: torch.Tensor  # [rows] float32
    finite: torch.Tensor  # [rows] bool
    # Rows that asked for alternatives, how many each, and the best `counts.max()` of each.
    alternative_rows: npt.NDArray[np.int64]
    alternative_counts: npt.NDArray[np.int64]
    alternative_tokens: torch.Tensor | None
    alternative_logprobs: torch.Tensor | None

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "Sampled":
        """The same with every tensor passed through `move`."""
        tokens, logprobs = self.alternative_tokens, self.alternative_logprobs
        return Sampled(
            move(self.tokens),
            move(self.logprobs),
            move(self.finite),
            self.alternative_rows,
            self.alternative_counts,
            None if tokens is None else move(tokens),
            None if logprobs is None else move(logprobs),
        )


def sample(
    kernels: Kernels, greedy: Greedy, logits: torch.Tensor, params: SlotParams, plan: SamplingPlan
) -> Sampled:
    """Samples one token for each row of `logits` `[rows, vocab]` float32; `greedy` knows the best of each."""
    best, logprobs, norm = greedy
    scores = _adjust(kernels, logits, params, plan)
    tokens = best if scores is logits else kernels.greedy(scores).tokens
    if plan.drawn is not None:
        _draw(kernels, tokens, scores, plan.drawn)
    if plan.penalised is not None:
        params.penalties.record(tokens, plan.penalised)
    if tokens is not best or plan.drawn is not None:
        logprobs = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - norm

    rows, counts, index = plan.alternative_rows, plan.alternative_counts, plan.alternatives
    best_tokens = best_logprobs = None
    if index is not None:
        best_logits, best_tokens = kernels.best_of(take(logits, index), int(counts.max()))
        best_logprobs = best_logits - norm[index].unsqueeze(-1)
    return Sampled(tokens, logprobs, norm.isfinite(), rows, counts, best_tokens, best_logprobs)


def _adjust(kernels: Kernels, logits: torch.Tensor, params: SlotParams, plan: SamplingPlan) -> torch.Tensor:
    """Adds biases, then penalties. `logits` themselves stay as the model gave them."""
    if not params.bias and plan.penalised is None:
        return logits
    scores = logits.clone()
    for slot, (tokens, values) in params.bias.items():
        for row in np.flatnonzero(plan.slots == slot):
            scores[row].index_add_(0, tokens, values)
    if plan.penalised is not None:
        kernels.penalise(scores, params.penalties.of(plan.penalised))
    return scores


def _draw(kernels: Kernels, tokens: torch.Tensor, scores: torch.Tensor, drawn: DrawnRows) -> None:
    """Replaces `tokens` at the rows that have a temperature by random draws."""
    tokens[drawn.rows] = draw(kernels, take(scores, drawn.rows), drawn.filters, drawn.uniform, drawn.ways)
