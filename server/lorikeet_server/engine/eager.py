"""Steps of any shape, op by op."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lorikeet_server.device.base import Device, Parcel
from lorikeet_server.engine.inputs import StepInputs
from lorikeet_server.engine.prompt import PromptPiece, PromptScores
from lorikeet_server.engine.rows import RowAdapters
from lorikeet_server.engine.sequences import Sequences
from lorikeet_server.kernels import Greedy, Kernels, LoraBatch, SequenceTables, StepTensors
from lorikeet_server.models.causal_lm import CausalLM
from lorikeet_server.pb import shard_pb2 as pb

Write = Callable[[pb.StepResult], None]


class Scored(NamedTuple):
    """The rows of a step whose next token is sampled."""

    logits: torch.Tensor  # f32 [rows, vocab]
    greedy: Greedy
    slots: torch.Tensor  # i64 [rows], of their sequences


@dataclass(frozen=True, slots=True)
class EagerStep:
    """What a step computes from, most of it where the parcel brings it."""

    prompt_tokens: torch.Tensor  # i64 [prefill rows]
    decodes: torch.Tensor  # i64 [decode rows], sequence slots
    step: StepTensors
    batch: LoraBatch | None
    prompts: list[tuple[PromptPiece, ...]]  # of each chunk that is scored
    sampled: torch.Tensor | None  # i64, the rows that are sampled; None: all
    sampled_batch: LoraBatch | None
    slots: torch.Tensor  # i64 [sampled]


class Eager:
    """Prepares such steps, and calls for them."""

    def __init__(
        self, model: CausalLM, kernels: Kernels, device: Device, sequences: Sequences, parcel: Parcel
    ) -> None:
        self._model, self._kernels, self._sequences, self._parcel = model, kernels, sequences, parcel
        self._batch = RowAdapters(model, parcel)
        self._scores = PromptScores(model, kernels, device, parcel, self._batch)

    def prepare(self, inputs: StepInputs) -> EagerStep:
        """Puts everything that the step needs into the parcel."""
        add, adapters = self._parcel.add, inputs.adapters
        sequences = SequenceTables(
            *map(torch.from_numpy, (inputs.tables, inputs.query_start, inputs.context))
        )
        shapes, block_size = self._model.attention_shapes, self._sequences.limits.block_size
        plan = self._kernels.plan(sequences, shapes, block_size, self._parcel)
        batch = sampled_batch = self._batch(adapters)
        sampled = None
        if inputs.sampled_rows.size < inputs.rows:
            sampled, sampled_batch = add(inputs.sampled_rows), self._batch(adapters[inputs.sampled_rows])
        return EagerStep(
            add(inputs.prompt_tokens),
            add(inputs.decode_slots),
            StepTensors(add(inputs.positions), add(inputs.slot_mapping), sequences, plan),
            batch,
            [self._scores.prepare(chunk, adapters) for chunk in inputs.prompt_chunks],
            sampled,
            sampled_batch,
            add(inputs.sampled_slots),
        )

    def run(self, inputs: StepInputs, ready: EagerStep) -> tuple[Scored | None, list[Write]]:
        """The scores of the rows that are sampled, if any are, and what writes those of prompts."""
        tokens = ready.prompt_tokens
        if inputs.decode_slots.size:
            decoded = self._sequences.last_token[ready.decodes]
            tokens = torch.cat((tokens, decoded)) if inputs.prompt_tokens.size else decoded
        hidden = self._model.forward(tokens, ready.step, ready.batch)
        chunks = zip(inputs.prompt_chunks, ready.prompts, strict=True)
        writes = [self._scores(chunk, pieces, hidden) for chunk, pieces in chunks]
        if not inputs.sampled_rows.size:
            return None, writes
        logits = self._model.logits(
            hidden if ready.sampled is None else hidden[ready.sampled], ready.sampled_batch
        )
        return Scored(logits, self._kernels.greedy(logits), ready.slots), writes
