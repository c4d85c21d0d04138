"""Decode steps as captured work: one capture for each number of rows that steps are padded to, without
adapters, with few and with any number, replayed for whatever sequences, lengths, adapters and ranks a step
has.

A capture reads everything that differs between steps from memory that stays in its place: the step's parcel,
the attention plan, the adapter tables. Padding rows read the token of no sequence, write to the spare place
of the cache, attend to it alone and have no adapter.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lorikeet_server.device.base import Array, Device, Outputs, Parcel
from lorikeet_server.engine.eager import Scored
from lorikeet_server.engine.inputs import StepInputs
from lorikeet_server.engine.sequences import Sequences
from lorikeet_server.kernels import (
    Greedy,
    Kernels,
    LoraBatch,
    SequenceTables,
    StepTensors,
)
from lorikeet_server.models.causal_lm import CausalLM

FEW_ADAPTERS = 4  # have captures of their own, whose grids leave the base's product more room
FEW_ROWS = 16  # up to which they would not be smaller


def buckets(max_rows: int) -> list[int]:
    """Numbers of rows worth a capture of their own, ascending, the last at most `max_rows`. Denser where a
    row more is a larger part of a step."""
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, 257, 32)]
    return [rows for rows in steps if rows < min(max_rows, steps[-1])] + [min(max_rows, steps[-1])]


@dataclass(slots=True)
class PaddedStep:
    """A step of decodes, padded, where the parcel brings it."""

    slots: torch.Tensor  # i64 [bucket]
    most: int  # adapters of the capture it is for
    tensors: StepTensors
    batch: LoraBatch | None  # None: without adapter slots
    offset: int  # of the parcel's end: if it equals that of a capture, so do all addresses


@dataclass(slots=True)
class DecodeGraph:
    """One capture."""

    offset: int  # as in `PaddedStep`
    replay: Callable[[], None]
    outputs: Outputs  # logits [bucket, vocab], and the three of `Greedy`


class DecodeGraphs:
    """All captures of one Warmup."""

    def __init__(
        self, model: CausalLM, kernels: Kernels, device: Device, sequences: Sequences, parcel: Parcel
    ) -> None:
        self._model, self._kernels, self._device, self._sequences = model, kernels, device, sequences
        self._parcel = parcel
        self._batcher = model.adapters.batcher(parcel) if model.adapters is not None else None
        limits = sequences.limits
        self._buckets = buckets(limits.max_decodes)
        self._spare = kernels.spare_place(limits.num_blocks, limits.block_size)
        # One for all captures, or each would keep its own.
        shape = self._buckets[-1], model.config.vocab_size
        self._logits = torch.empty(shape, dtype=torch.float32, device=device.where)
        self._captured: dict[tuple[int, int], DecodeGraph] = {}  # by rows, and the most adapters

    def capture(self, *, largest: bool = False) -> None:
        """Captures everything, the largest first: the smaller then find room in its memory. With `largest`,
        only that."""
        for bucket in reversed(self._buckets[-1:] if largest else self._buckets):
            for most in self._bounds(bucket):
                self._captured[bucket, most] = self._capture(bucket, most)

    def can_replay(self, inputs: StepInputs) -> bool:
        """Whether a step can be replayed: decodes only, not more than the largest bucket."""
        return bool(self._captured) and inputs.decodes_only and inputs.rows <= self._buckets[-1]

    def prepare(self, inputs: StepInputs) -> PaddedStep:
        """Puts everything that the step needs into the parcel, which is empty."""
        bucket = next(bucket for bucket in self._buckets if bucket >= inputs.rows)
        arrays = inputs.decode_slots, inputs.positions, inputs.slot_mapping
        distinct = np.unique(inputs.adapters[inputs.adapters >= 0]).size
        most = next(bound for bound in self._bounds(bucket) if bound >= distinct)
        return self._pad(bucket, most, arrays, inputs.adapters, inputs.tables, inputs.context)

    def run(self, inputs: StepInputs, step: PaddedStep) -> Scored:
        """What `Eager.run` gives, until the next run."""
        captured = self._captured[step.slots.shape[0], step.most]
        if captured.offset != step.offset:
            raise RuntimeError(f"the step's parcel ends at {step.offset}, its capture's at {captured.offset}")
        captured.replay()
        logits, *best = (output[: inputs.rows] for output in captured.outputs)
        return Scored(logits, Greedy(*best), step.slots[: inputs.rows])

    def _bounds(self, bucket: int) -> list[int]:
        """The numbers of adapters that steps of so many rows are captured for, ascending."""
        slots = self._sequences.limits.adapter_slots if self._batcher is not None else 0
        return sorted({0, min(FEW_ADAPTERS, slots) if bucket > FEW_ROWS else 0, slots})

    def _capture(self, bucket: int, most: int) -> DecodeGraph:
        """Of a step that is all padding, with tables as wide as any step's."""
        none, no_adapters = np.zeros(0, np.int64), np.zeros(0, np.int32)
        tables = np.zeros((0, self._sequences.limits.blocks_per_sequence), np.int32)
        self._parcel.begin()
        step = self._pad(bucket, most, (none, none, none), no_adapters, tables, np.zeros(0, np.int32))
        self._parcel.send()
        batch = step.batch if most else None
        return DecodeGraph(step.offset, *self._device.capture(lambda: self._decode(step, batch)))

    def _decode(self, step: PaddedStep, batch: LoraBatch | None) -> Outputs:
        tokens = self._sequences.last_token[step.slots]
        hidden = self._model.forward(tokens, step.tensors, batch)
        logits = self._model.logits(hidden, batch, self._logits[: tokens.shape[0]])
        return logits, *self._kernels.greedy(logits)

    def _pad(
        self,
        bucket: int,
        most: int,
        arrays: tuple[Array, ...],
        adapters: Array,
        tables: Array,
        context: Array,
    ) -> PaddedStep:
        """What has one size for a bucket; then the attention's tables, with as many blocks as there are."""
        limits, shapes = self._sequences.limits, self._model.attention_shapes
        fill = limits.max_sequences, 0, self._spare
        filled = (padded(array, bucket, value) for array, value in zip(arrays, fill, strict=True))
        slots, positions, slot_mapping = map(self._parcel.add, filled)
        # Cut for steps without adapters too: what follows must not move.
        batch = self._batcher(padded(adapters, bucket, -1), most) if self._batcher is not None else None
        offset = self._parcel.offset
        sequences = SequenceTables(
            torch.from_numpy(padded(tables, bucket, self._spare // limits.block_size)),
            torch.arange(bucket + 1, dtype=torch.int32),
            torch.from_numpy(padded(context, bucket, 1)),
        )
        plan = self._kernels.plan(sequences, shapes, limits.block_size, self._parcel, fixed=True)
        return PaddedStep(slots, most, StepTensors(positions, slot_mapping, sequences, plan), batch, offset)


def padded(rows: Array, count: int, value: int) -> Array:
    """`rows` `[n, ...]` with as many more of `value` as make `[count, ...]`."""
    padding = np.full((count - rows.shape[0], *rows.shape[1:]), value, rows.dtype)
    return np.concatenate((rows, padding))
