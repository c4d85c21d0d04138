"""One token per row, with log-probabilities of the model's own distribution."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lorikeet_server.kernels import Greedy
from lorikeet_server.sampling.filters import Filters, Short, draw
from lorikeet_server.sampling.params import SlotParams
from lorikeet_server.sampling.rng import uniforms


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
    greedy: Greedy,
    logits: torch.Tensor,
    params: SlotParams,
    slots: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
) -> Sampled:
    """Samples one token for each row of `logits` `[rows, vocab]` float32, of which `greedy` knows the best.

    `slots` names each row's parameters, `positions` is where in its sequence the new token will stand.
    """
    best, logprobs, norm = greedy
    scores = _adjust(logits, params, slots)
    tokens = best if scores is logits else scores.argmax(-1)
    drawn = np.flatnonzero(params.temperature[slots] > 0)
    if drawn.size:
        _draw(tokens, scores, params, slots, positions, drawn)
    if params.penalties.in_use:
        params.penalties.record(tokens, slots)
    if tokens is not best or drawn.size:
        logprobs = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - norm

    wanted = params.top_logprobs[slots]
    rows = np.flatnonzero(wanted)
    best_tokens = best_logprobs = None
    if rows.size:
        (index,) = params.device.upload(rows)
        best_logprobs, best_tokens = logits[index].topk(int(wanted.max()), dim=-1)
        best_logprobs = best_logprobs - norm[index].unsqueeze(-1)
    return Sampled(tokens, logprobs, norm.isfinite(), rows, wanted[rows], best_tokens, best_logprobs)


def _adjust(logits: torch.Tensor, params: SlotParams, slots: npt.NDArray[np.int64]) -> torch.Tensor:
    """Adds biases, then penalties. `logits` themselves stay as the model gave them."""
    if not params.bias and not params.penalties.in_use:
        return logits
    scores = logits.clone()
    for slot, (tokens, values) in params.bias.items():
        for row in np.flatnonzero(slots == slot):
            scores[row].index_add_(0, tokens, values)
    params.penalties.apply(scores, slots)
    return scores


def _draw(
    tokens: torch.Tensor,
    scores: torch.Tensor,
    params: SlotParams,
    slots: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    drawn: npt.NDArray[np.int64],
) -> None:
    """Replaces `tokens` at the rows `drawn`, those with a temperature, by random draws."""
    everyone = drawn.size == slots.size
    slots, positions = slots[drawn], positions[drawn]
    top_k, top_p, typical_p = params.top_k[slots], params.top_p[slots], params.typical_p[slots]
    uniform, temperatures = uniforms(params.seed[slots], positions), params.temperature[slots]
    index, temperature, k, p, typical, uniform_numbers = params.device.upload(
        drawn, temperatures, top_k, top_p, typical_p, uniform
    )
    if not everyone:
        scores = scores[index]
    filters = Filters(k, p, typical, uniform_numbers, any_typical=bool((typical_p < 1).any()))
    temperature = temperature.unsqueeze(-1)
    # Relative to the best score, so that a tiny temperature overflows to probability zero and not to NaN.
    scaled = (scores - scores.amax(-1, keepdim=True)) / temperature
    tokens[index] = draw(params.device, scaled, filters, Short.of(top_k, top_p, typical_p))
