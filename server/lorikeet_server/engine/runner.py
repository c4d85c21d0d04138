"""Executes one step: releases, moves, admissions, then the batch. Runs on the compute thread only."""

import time

import numpy as np
import torch
from loguru import logger

from lorikeet_server.adapters.slots import AdapterSlots
from lorikeet_server.dist import TensorParallel
from lorikeet_server.engine import result as results
from lorikeet_server.engine.inputs import PromptChunk, StepInputs, build_inputs
from lorikeet_server.engine.sequences import Sequences
from lorikeet_server.errors import ProtocolError
from lorikeet_server.kernels import Kernels, LoraBatch, LoraSegments
from lorikeet_server.models.causal_lm import CausalLM
from lorikeet_server.pb import shard_pb2 as pb
from lorikeet_server.sampling.sampler import sample

# Rows of logits at a time for prompt log-probabilities: 64 rows of a 128k vocabulary take 33 MB.
PROMPT_ROWS = 64


class Runner:
    """Holds the state that steps change. One instance per Warmup."""

    def __init__(
        self, model: CausalLM, kernels: Kernels, tp: TensorParallel, sequences: Sequences, slots: AdapterSlots
    ) -> None:
        self._model, self._kernels, self._tp = model, kernels, tp
        self._sequences, self._slots = sequences, slots
        self._filled = np.zeros(sequences.limits.adapter_slots + 1, np.bool_)
        self._filled[-1] = True  # where rows without an adapter look: index -1

    def reset(self) -> None:
        """Empties every sequence slot and every adapter slot."""
        self._sequences.clear()
        self._slots.clear()
        self._filled[:-1] = False

    def run(self, step: pb.Step) -> pb.StepResult:
        """Computes a step. Raises ProtocolError if the step contradicts this shard's state.

        An exception from the computation fails the rows of this step and no more; with several ranks it goes
        to the caller, since the others are inside collectives that this rank will not join.
        """
        started = time.perf_counter_ns()
        result = pb.StepResult(id=step.id)
        if step.releases:
            self._sequences.release(np.array(step.releases, np.int64))
        for move in step.moves:
            self._move(move, result)
        for admission in step.admissions:
            self._sequences.admit(admission)
        inputs = build_inputs(step, self._sequences)
        if inputs is not None:
            try:
                self._compute(inputs, result)
            except Exception as error:
                if self._tp.size > 1:
                    raise
                logger.exception("step {} failed", step.id)
                result = pb.StepResult(
                    id=step.id, adapter_slots_ready=result.adapter_slots_ready, move_errors=result.move_errors
                )
                results.write_failed(result, inputs, f"the step failed: {type(error).__name__}")
        result.compute_us = (time.perf_counter_ns() - started) // 1000
        return result

    def _move(self, move: pb.AdapterMove, result: pb.StepResult) -> None:
        slot, limit = move.slot, self._sequences.limits.adapter_slots
        if slot >= limit:
            raise ProtocolError(f"adapter slot {slot} is outside 0..{limit - 1}")
        failed = self._slots.move(slot, move.digest)
        self._filled[slot] = failed is None and bool(move.digest)
        if failed is None:
            result.adapter_slots_ready.append(slot)
        else:
            result.move_errors.append(pb.MoveError(slot=slot, digest=move.digest, message=failed.message))

    def _compute(self, inputs: StepInputs, result: pb.StepResult) -> None:
        hidden = self._model.forward(inputs.tokens, inputs.tensors, inputs.batch)
        for chunk in inputs.prompt_chunks:
            if chunk.targets.size:
                self._prompt_logprobs(chunk, hidden, inputs, result)
        if inputs.sampled_rows.size:
            self._sample(hidden, inputs, result)
        empty = inputs.slots[~self._filled[self._sequences.adapter[inputs.slots]]]
        if empty.size:
            results.write_errors(result, empty, "internal", "the adapter slot of this sequence is empty")

    def _sample(self, hidden: torch.Tensor, inputs: StepInputs, result: pb.StepResult) -> None:
        if inputs.sampled_rows.size < hidden.shape[0]:
            hidden = hidden[torch.from_numpy(inputs.sampled_rows).to(hidden.device)]
        logits = self._model.logits(hidden, inputs.sampled_batch)
        slots = inputs.sampled_slots
        sampled = sample(self._kernels, logits, self._sequences.params, slots, inputs.sampled_positions)
        self._tp.agree(sampled.tokens)
        self._sequences.last_token[torch.from_numpy(slots).to(logits.device)] = sampled.tokens
        results.write_sampled(result, slots, sampled)

    def _prompt_logprobs(
        self, chunk: PromptChunk, hidden: torch.Tensor, inputs: StepInputs, result: pb.StepResult
    ) -> None:
        logprobs, top_tokens, top_logprobs = [], [], []
        for start in range(0, chunk.targets.size, PROMPT_ROWS):
            targets = torch.from_numpy(chunk.targets[start : start + PROMPT_ROWS]).to(hidden.device)
            rows = slice(chunk.first + start, chunk.first + start + targets.numel())
            logits = self._model.logits(hidden[rows], self._rows_batch(inputs, rows))
            norm = logits.logsumexp(-1, keepdim=True)
            logprobs.append((logits.gather(-1, targets.unsqueeze(-1)) - norm).squeeze(-1))
            if chunk.top:
                best, tokens = logits.topk(chunk.top, dim=-1)
                top_tokens.append(tokens)
                top_logprobs.append(best - norm)
        top = (torch.cat(top_tokens), torch.cat(top_logprobs)) if chunk.top else (None, None)
        results.write_prompt(result, chunk, torch.cat(logprobs), *top)

    def _rows_batch(self, inputs: StepInputs, rows: slice) -> LoraBatch | None:
        adapters = inputs.row_adapters[rows]
        return LoraSegments.build(torch.from_numpy(adapters)) if (adapters >= 0).any() else None
