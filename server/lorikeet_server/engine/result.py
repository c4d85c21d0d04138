"""From a step's tensors to the packed arrays of a StepResult: the one place where numbers are read on the
host."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from lorikeet_server.device.base import Event
from lorikeet_server.engine.inputs import PromptChunk, StepInputs
from lorikeet_server.engine.sequences import Ints
from lorikeet_server.pb import shard_pb2 as pb
from lorikeet_server.sampling.sampler import Sampled

NUMERIC = "the model's output for this sequence is not finite"


@dataclass(slots=True)
class Clock:
    """When the last step was done, by `perf_counter_ns`: a step that waited for it was not computing."""

    last: int = 0


@dataclass(slots=True)
class PendingResult:
    """A step that has been called for. Its numbers are on their way to the host; `done` is reached when they
    are there (None: they are). `writes` put them into `message`, in order."""

    message: pb.StepResult
    started: int  # perf_counter_ns
    clock: Clock  # of all steps of a runner
    done: Event | None = None
    writes: list[Callable[[pb.StepResult], None]] = field(default_factory=list)

    def wait(self) -> pb.StepResult:
        """Blocks until the step is done. Once only. Raises DeviceError."""
        if self.done is not None:
            self.done.wait()
        for write in self.writes:
            write(self.message)
        now = time.perf_counter_ns()
        self.message.compute_us = (now - max(self.started, self.clock.last)) // 1000
        self.clock.last = now
        return self.message


def write_sampled(result: pb.StepResult, slots: Ints, sampled: Sampled) -> None:
    """Appends one entry per sampled row, and an error for each row that is not finite."""
    finite = sampled.finite.numpy()
    result.slot.extend(slots.tolist())
    result.token.extend(sampled.tokens.tolist())
    result.logprob.extend(sampled.logprobs.nan_to_num().tolist())
    _write_alternatives(result, slots.size, sampled)
    if not finite.all():
        write_errors(result, slots[~finite], "numeric_error", NUMERIC)


def _write_alternatives(result: pb.StepResult, rows: int, sampled: Sampled) -> None:
    tokens, logprobs = sampled.alternative_tokens, sampled.alternative_logprobs
    if tokens is None or logprobs is None:
        result.alternatives.extend([0] * rows)
        return
    counts = np.zeros(rows, np.int64)
    counts[sampled.alternative_rows] = sampled.alternative_counts
    # Every row has as many columns as the largest request; each keeps what it asked for.
    kept = np.arange(tokens.shape[1]) < sampled.alternative_counts[:, None]
    result.alternatives.extend(counts.tolist())
    result.alternative_tokens.extend(tokens.numpy()[kept].tolist())
    result.alternative_logprobs.extend(logprobs.nan_to_num().numpy()[kept].tolist())


def write_failed(result: pb.StepResult, inputs: StepInputs, message: str) -> None:
    """The step raised: an entry for each sampled row, as the protocol wants, and an error for every
    sequence."""
    rows = inputs.sampled_slots.size
    result.slot.extend(inputs.sampled_slots.tolist())
    result.token.extend([0] * rows)
    result.logprob.extend([0.0] * rows)
    result.alternatives.extend([0] * rows)
    write_errors(result, inputs.slots, "internal", message)


def write_errors(result: pb.StepResult, slots: Ints, code: str, message: str) -> None:
    result.errors.extend(pb.RowError(slot=slot, code=code, message=message) for slot in slots.tolist())


def write_prompt(
    result: pb.StepResult,
    chunk: PromptChunk,
    logprobs: torch.Tensor,
    top_tokens: torch.Tensor | None,
    top_logprobs: torch.Tensor | None,
) -> None:
    """Appends the prompt log-probabilities of one chunk."""
    message = pb.PromptLogprobs(slot=chunk.slot, start=chunk.start, top=chunk.top)
    message.logprobs.extend(logprobs.nan_to_num().tolist())
    if top_tokens is not None and top_logprobs is not None:
        message.top_tokens.extend(top_tokens.flatten().tolist())
        message.top_logprobs.extend(top_logprobs.nan_to_num().flatten().tolist())
    result.prompt_logprobs.append(message)
    if not bool(logprobs.isfinite().all()):
        write_errors(result, np.array([chunk.slot]), "numeric_error", NUMERIC)
