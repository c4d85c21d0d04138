"""Sampling parameters of every sequence slot, as arrays over slots."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorikeet_server.device.base import Device
from lorikeet_server.sampling.penalties import PenaltyCounts


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What one sequence asks for. Neutral values mean off; `from_pb` maps the protocol's zeros onto them."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    top_logprobs: int = 0
    bias_tokens: Sequence[int] = ()
    bias_values: Sequence[float] = ()

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0


class SlotParams:
    """Host arrays `[slots]`, written at admission and gathered by row each step.

    Bias and penalties cost a pass over the vocabulary, so the rows that use them are tracked by slot and
    everyone else pays nothing.
    """

    def __init__(self, slots: int, vocab_size: int, device: Device) -> None:
        self.temperature = np.zeros(slots, np.float32)
        self.top_k = np.zeros(slots, np.int64)
        self.top_p = np.ones(slots, np.float32)
        self.typical_p = np.ones(slots, np.float32)
        self.seed = np.zeros(slots, np.uint64)
        self.top_logprobs = np.zeros(slots, np.int64)
        self.bias: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.penalties = PenaltyCounts(slots, vocab_size, device)
        self.vocab_size = vocab_size
        self.device = device

    def admit(self, slot: int, params: SamplingParams, history: Sequence[int], history_output: int) -> None:
        """Sets the parameters of `slot`. `history` matters only where a penalty is on."""
        self.release(slot)
        self.temperature[slot] = params.temperature
        self.top_k[slot] = params.top_k if params.top_k < self.vocab_size else 0
        self.top_p[slot] = params.top_p
        self.typical_p[slot] = params.typical_p
        self.seed[slot] = params.seed
        self.top_logprobs[slot] = min(params.top_logprobs, self.vocab_size)
        if params.bias_tokens:
            tokens, values = self.device.upload(
                np.array(params.bias_tokens, np.int64), np.array(params.bias_values, np.float32)
            )
            self.bias[slot] = tokens, values
        if params.penalised:
            self.penalties.admit(
                slot,
                (params.repetition_penalty, params.frequency_penalty, params.presence_penalty),
                history,
                history_output,
            )

    def release(self, slot: int) -> None:
        self.bias.pop(slot, None)
        self.penalties.release(slot)

    def clear(self) -> None:
        self.bias.clear()
        self.penalties.clear()
