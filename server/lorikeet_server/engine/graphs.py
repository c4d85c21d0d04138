"""Decode steps as captured work: one capture for each number of rows that steps are padded to, with and
without adapters, replayed for whatever sequences, lengths, adapters and ranks a step has.

A capture reads everything that differs between steps from memory that stays in its place: slots, positions
and places (`Upload`), the attention plan, the adapter batch, the adapter tables. Padding rows read the token
of no sequence, write to the spare place of the cache, attend to it alone and have no adapter.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lorikeet_server.device.base import Array, Device, Outputs, Upload
from lorikeet_server.engine.inputs import StepInputs
from lorikeet_server.engine.sequences import Sequences
from lorikeet_server.kernels import (
    AttentionPlan,
    Greedy,
    Kernels,
    LoraBatch,
    LoraBatcher,
    SequenceTables,
    StepTensors,
)
from lorikeet_server.models.causal_lm import CausalLM


def buckets(max_rows: int) -> list[int]:
    """Numbers of rows worth a capture of their own, ascending, the last at most `max_rows`. Denser where a
    row more is a larger part of a step."""
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, 257, 32)]
    return [rows for rows in steps if rows < min(max_rows, steps[-1])] + [min(max_rows, steps[-1])]


@dataclass(slots=True)
class Captured:
    """One capture, and what it reads."""

    upload: Upload  # slots, positions, places, each [bucket] int64
    step: StepTensors
    batcher: LoraBatcher | None  # None: without adapters
    batch: LoraBatch | None
    replay: Callable[[], None]
    outputs: Outputs  # logits [bucket, vocab], and the three of `Greedy`


class DecodeGraphs:
    """All captures of one Warmup."""

    def __init__(self, model: CausalLM, kernels: Kernels, device: Device, sequences: Sequences) -> None:
        self._model, self._kernels, self._device, self._sequences = model, kernels, device, sequences
        limits = sequences.limits
        self._buckets = buckets(min(limits.max_sequences, limits.max_step_tokens))
        self._spare = kernels.spare_place(limits.num_blocks, limits.block_size)
        # One for all captures, or each would keep its own.
        shape = self._buckets[-1], model.config.vocab_size
        self._logits = torch.empty(shape, dtype=torch.float32, device=device.where)
        self._captured: dict[tuple[int, bool], Captured] = {}

    def capture(self) -> None:
        """Captures everything, the largest first: the smaller then find room in its memory."""
        adapters = self._model.adapters
        batcher = adapters.batcher() if adapters is not None else None
        for bucket in reversed(self._buckets):
            self._captured[bucket, False] = self._capture(bucket, None)
            if batcher is not None:
                self._captured[bucket, True] = self._capture(bucket, batcher)

    def holds(self, inputs: StepInputs) -> bool:
        """Whether a step can be replayed: decodes only, not more than the largest bucket."""
        return bool(self._captured) and inputs.decodes_only and inputs.rows <= self._buckets[-1]

    def run(self, inputs: StepInputs) -> tuple[torch.Tensor, Greedy, torch.Tensor]:
        """Logits `[rows, vocab]`, the best tokens, and the sequence slots `[rows]`, until the next run."""
        rows = inputs.rows
        bucket = next(bucket for bucket in self._buckets if bucket >= rows)
        captured = self._captured[bucket, bool((inputs.adapters >= 0).any())]
        arrays = self._arrays(bucket, inputs.decode_slots, inputs.positions, inputs.places)
        self._device.refill(captured.upload, *arrays)
        self._plan(bucket, inputs.tables, inputs.context)
        if captured.batcher is not None:
            captured.batch = captured.batcher(padded(inputs.adapters, bucket, -1))
        captured.replay()
        logits, *best = (output[:rows] for output in captured.outputs)
        return logits, Greedy(*best), captured.upload.tensors[0][:rows]

    def _capture(self, bucket: int, batcher: LoraBatcher | None) -> Captured:
        """Of a step that is all padding, with tables as wide as any step's."""
        none, limits = np.zeros(0, np.int64), self._sequences.limits
        upload = self._device.keep(*self._arrays(bucket, none, none, none))
        tables = np.zeros((0, limits.blocks_per_sequence), np.int32)
        _, positions, places = upload.tensors
        step = StepTensors(positions, places, *self._plan(bucket, tables, np.zeros(0, np.int32)))
        batch = None if batcher is None else batcher(np.full(bucket, -1, np.int32))
        captured = Captured(upload, step, batcher, batch, lambda: None, ())
        captured.replay, captured.outputs = self._device.capture(lambda: self._decode(captured))
        return captured

    def _decode(self, captured: Captured) -> Outputs:
        tokens = self._sequences.last_token[captured.upload.tensors[0]]
        hidden = self._model.forward(tokens, captured.step, captured.batch)
        logits = self._model.logits(hidden, captured.batch, self._logits[: tokens.shape[0]])
        return logits, *self._kernels.greedy(logits)

    def _arrays(self, bucket: int, slots: Array, positions: Array, places: Array) -> tuple[Array, ...]:
        no_sequence = self._sequences.limits.max_sequences
        fill = (slots, no_sequence), (positions, 0), (places, self._spare)
        return tuple(padded(array, bucket, value) for array, value in fill)

    def _plan(
        self, bucket: int, tables: Array, context: Array
    ) -> tuple[SequenceTables, AttentionPlan | None]:
        block_size, shapes = self._sequences.limits.block_size, self._model.attention_shapes
        sequences = SequenceTables(
            torch.from_numpy(padded(tables, bucket, self._spare // block_size)),
            torch.arange(bucket + 1, dtype=torch.int32),
            torch.from_numpy(padded(context, bucket, 1)),
        )
        return sequences, self._kernels.plan(sequences, shapes, block_size, fixed=True)


def padded(rows: Array, count: int, value: int) -> Array:
    """`rows` `[n, ...]` with as many more of `value` as make `[count, ...]`."""
    padding = np.full((count - rows.shape[0], *rows.shape[1:]), value, rows.dtype)
    return np.concatenate((rows, padding))
