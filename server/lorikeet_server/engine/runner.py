"""Calls for one step: releases, moves, admissions, then the batch. Runs on the compute thread only, and waits
for nothing on the device."""

import time

import numpy as np
import numpy.typing as npt
from loguru import logger

from lorikeet_server.adapters.slots import AdapterSlots
from lorikeet_server.device.base import Device
from lorikeet_server.dist import TensorParallel
from lorikeet_server.engine import result as results
from lorikeet_server.engine.eager import Eager, Scored, Write
from lorikeet_server.engine.graphs import DecodeGraphs
from lorikeet_server.engine.inputs import StepInputs, build_inputs
from lorikeet_server.engine.limits import Limits
from lorikeet_server.engine.sequences import Sequences
from lorikeet_server.errors import DeviceError, ProtocolError
from lorikeet_server.kernels import Kernels
from lorikeet_server.kvcache.fresh_pages import FreshPages
from lorikeet_server.models.causal_lm import CausalLM
from lorikeet_server.pb import shard_pb2 as pb
from lorikeet_server.sampling.plan import SamplingPlan
from lorikeet_server.sampling.sampler import sample

POLL_SECONDS = 0.001
NO_SLOTS = np.zeros(0, np.int32)


class Runner:
    """Holds the state that steps change. One instance per Warmup."""

    def __init__(
        self,
        model: CausalLM,
        kernels: Kernels,
        device: Device,
        tp: TensorParallel,
        sequences: Sequences,
        slots: AdapterSlots,
        fresh: FreshPages | None,
    ) -> None:
        """`fresh`: None where a pool's memory is all there from the start."""
        self._model, self._kernels, self._device, self._tp = model, kernels, device, tp
        self._fresh = fresh
        self._sequences, self._slots = sequences, slots
        self._parcel = parcel = device.parcel(parcel_bytes(sequences.limits))
        self._eager = Eager(model, kernels, device, sequences, parcel)
        self._graphs = (
            DecodeGraphs(model, kernels, device, sequences, parcel)
            if kernels.captures(model.attention_shapes)
            else None
        )
        self._filled = np.zeros(sequences.limits.adapter_slots + 1, np.bool_)
        self._clock = results.Clock()
        self._moved = False  # since the tables were committed
        self._filled[-1] = True  # where rows without an adapter look: index -1

    @property
    def limits(self) -> Limits:
        """The sizes that steps are checked against."""
        return self._sequences.limits

    def capture(self, *, largest: bool = False) -> None:
        """Captures decodes, where the backend can, or the largest alone. Before, all steps run op by op."""
        if self._graphs is not None:
            self._graphs.capture(largest=largest)

    def reset(self) -> None:
        """Empties every sequence slot and every adapter slot."""
        self._sequences.clear()
        self._slots.clear()
        self._filled[:-1] = False
        self._moved = True

    def take_ahead(self) -> bool:
        """Takes a little of the memory that later steps will want; False if there is enough."""
        return self._fresh is not None and self._fresh.take(self._sequences.used)

    def run(self, step: pb.Step, *, strict: bool = False) -> results.PendingResult:
        """Calls for a step. Raises ProtocolError if the step contradicts this shard's state, DeviceError.

        An exception from the computation fails the rows of this step and no more; with several ranks, since
        the others are inside collectives that this rank will not join, or if `strict`, it goes to the caller.
        """
        pending = results.PendingResult(pb.StepResult(id=step.id), time.perf_counter_ns(), self._clock)
        if step.releases:
            self._sequences.release(np.array(step.releases, np.int64))
        for move in step.moves:
            self._move(move, pending.message)
        for admission in step.admissions:
            self._sequences.admit(admission)
        inputs = build_inputs(step, self._sequences)
        if inputs is None and not step.moves and not step.releases:
            self._await_copies()
        self._take_arrived(NO_SLOTS if inputs is None else inputs.adapters, pending.message)
        if inputs is not None:
            try:
                pending.writes = self._compute(inputs)
            except DeviceError:
                raise
            except Exception as error:
                if strict or self._tp.size > 1:
                    raise
                self._device.synchronize()  # raises if it is the device that failed
                logger.exception("step {} failed", step.id)
                pending.writes = [failure(inputs, f"the step failed: {type(error).__name__}")]
        pending.done = self._device.record()
        return pending

    def _move(self, move: pb.AdapterMove, result: pb.StepResult) -> None:
        slot, limit = move.slot, self._sequences.limits.adapter_slots
        if slot >= limit:
            raise ProtocolError(f"adapter slot {slot} is outside 0..{limit - 1}")
        failed = self._slots.move(slot, move.digest)
        self._filled[slot] = False
        self._moved = True
        if failed is not None:
            result.move_errors.append(pb.MoveError(slot=slot, digest=move.digest, message=failed.message))

    def _await_copies(self) -> None:
        """An empty step asks how copies are getting on. One that is about to be done is worth waiting for,
        and so is not being asked all the time; but the next step may have rows, and must not wait long."""
        end = time.monotonic() + POLL_SECONDS
        while self._slots.on_their_way() and time.monotonic() < end:
            time.sleep(POLL_SECONDS / 10)

    def _take_arrived(self, needed: npt.NDArray[np.int32], result: pb.StepResult) -> None:
        """Lets this step see the adapters that have come, and those it cannot do without."""
        ready, failed = self._slots.arrived(needed)
        self._filled[ready] = True
        result.adapter_slots_ready.extend(ready)
        for move in failed:
            result.move_errors.append(pb.MoveError(slot=move.slot, digest=move.digest, message=move.message))
        if (ready or self._moved) and self._model.adapters is not None:
            self._model.adapters.commit()
            self._moved = False

    def _compute(self, inputs: StepInputs) -> list[Write]:
        """Calls for the batch; returns what writes its numbers once they are there."""
        params, parcel, writes = self._sequences.params, self._parcel, list[Write]()
        parcel.begin()
        if self._graphs is not None and self._graphs.can_replay(inputs):
            padded = self._graphs.prepare(inputs)
            plan = SamplingPlan.of(params, inputs.sampled_slots, inputs.sampled_positions, parcel)
            parcel.send()
            writes.append(self._sample(self._graphs.run(inputs, padded), plan))
        else:
            ready = self._eager.prepare(inputs)
            plan = SamplingPlan.of(params, inputs.sampled_slots, inputs.sampled_positions, parcel)
            parcel.send()
            scored, writes = self._eager.run(inputs, ready)
            if scored is not None:
                writes.append(self._sample(scored, plan))
        empty = inputs.slots[~self._filled[self._sequences.adapter[inputs.slots]]]
        if empty.size:
            message = "the adapter slot of this sequence is empty"
            writes.append(lambda result: results.write_errors(result, empty, "internal", message))
        return writes

    def _sample(self, scored: Scored, plan: SamplingPlan) -> Write:
        sampled = sample(self._kernels, scored.greedy, scored.logits, self._sequences.params, plan)
        self._tp.agree(sampled.tokens)
        self._sequences.last_token[scored.slots] = sampled.tokens
        sampled = sampled.moved(self._device.download)
        return lambda result: results.write_sampled(result, plan.slots, sampled)


def parcel_bytes(limits: Limits) -> int:
    """About what a step may send: 64 bytes for a row, 256 and its blocks for a sequence, and adapters."""
    sequence = 256 + 4 * limits.blocks_per_sequence
    return (1 << 20) + 64 * limits.max_step_tokens + sequence * limits.max_sequences


def failure(inputs: StepInputs, message: str) -> Write:
    """Writes that a step has failed."""
    return lambda result: results.write_failed(result, inputs, message)
