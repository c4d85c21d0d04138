"""From a step's packed arrays to those of its rows, once per step and without a loop over them. All on the
host."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorikeet_server.engine.sequences import Ints, Sequences
from lorikeet_server.errors import ProtocolError
from lorikeet_server.pb import shard_pb2 as pb

NO_TOKENS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """As many rows of the step, from `first` on, predict the prompt tokens in `targets`."""

    slot: int
    start: int  # position of the row `first`
    first: int
    targets: npt.NDArray[np.int64]
    top: int  # alternatives wanted with each


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Rows are tokens: the prefill chunks in their order, then one row per decode."""

    prompt_tokens: Ints  # [prefill rows]
    decode_slots: Ints  # [decode rows]
    positions: Ints  # [rows]
    slot_mapping: Ints  # [rows] where in the cache a row's key and value go: no sequence or adapter slot
    adapters: npt.NDArray[np.int32]  # [rows] adapter slots
    slots: Ints  # [sequences] slots with a row in the step
    tables: npt.NDArray[np.int32]  # [sequences, blocks of the longest]
    query_start: npt.NDArray[np.int32]  # [sequences + 1]
    context: npt.NDArray[np.int32]  # [sequences] tokens, with those of this step
    sampled_rows: Ints  # [sampled] the row of each sampled sequence's last token
    sampled_slots: Ints  # [sampled]
    sampled_positions: Ints  # [sampled] where the new token will stand
    prompt_chunks: list[PromptChunk]

    @property
    def rows(self) -> int:
        return self.positions.size

    @property
    def decodes_only(self) -> bool:
        """One row per sequence, and a token wanted from each."""
        return not self.prompt_tokens.size


def build_inputs(step: pb.Step, sequences: Sequences) -> StepInputs | None:
    """Updates block tables and lengths, and lays out the step. None if it has no rows. Raises
    ProtocolError."""
    if step.prefill.slot or step.prefill.tokens:
        return mixed_inputs(step, sequences)
    return decode_inputs(step.decode, sequences) if step.decode.slot else None


def mixed_inputs(step: pb.Step, sequences: Sequences) -> StepInputs:
    """Of a step with prefill chunks, decodes, or both."""
    prefill, decode = step.prefill, step.decode
    prefill_slots, lengths = _ints(prefill.slot), _ints(prefill.length)
    starts, sample = _ints(prefill.start), np.array(prefill.sample, np.bool_)
    chunk_tokens, decode_slots = _ints(prefill.tokens), _ints(decode.slot)
    slots = np.concatenate((prefill_slots, decode_slots))
    _check_slots(sequences, slots, chunk_tokens.size + decode_slots.size)
    _check_chunks(sequences, prefill_slots, lengths, starts, sample, chunk_tokens, prefill.next_token)
    sequences.append_blocks(prefill_slots, _ints(prefill.new_blocks), _ints(prefill.blocks))
    sequences.append_blocks(decode_slots, _ints(decode.new_blocks), _ints(decode.blocks))

    # Every sequence contributes `rows[s]` tokens that follow the `before[s]` it has.
    rows = np.concatenate((lengths, np.ones_like(decode_slots)))
    before, context = sequences.extend(slots, rows)
    query_start = np.zeros(slots.size + 1, np.int32)
    np.cumsum(rows, out=query_start[1:])
    positions = np.arange(query_start[-1]) + np.repeat(before - query_start[:-1], rows)
    row_slots = np.repeat(slots, rows)

    is_sampled = np.concatenate((sample, np.ones(decode_slots.size, np.bool_)))
    return StepInputs(
        prompt_tokens=chunk_tokens,
        decode_slots=decode_slots,
        positions=positions,
        slot_mapping=sequences.slot_mapping(row_slots, positions),
        adapters=sequences.adapter[row_slots],
        slots=slots,
        tables=sequences.tables(slots, context),
        query_start=query_start,
        context=context.astype(np.int32),
        sampled_rows=(query_start[1:] - 1)[is_sampled].astype(np.int64),
        sampled_slots=slots[is_sampled],
        sampled_positions=context[is_sampled],
        prompt_chunks=_prompt_chunks(sequences, prefill, prefill_slots, starts, query_start, chunk_tokens),
    )


def decode_inputs(decode: pb.Decode, sequences: Sequences) -> StepInputs:
    """What `mixed_inputs` makes of decodes alone, in a third of its operations: nearly every step is one of
    these, and on a CPU all cores wait for them."""
    slots = _ints(decode.slot)
    _check_slots(sequences, slots, slots.size)
    sequences.append_blocks(slots, _ints(decode.new_blocks), _ints(decode.blocks))
    before, context = sequences.extend(slots, 1)
    each = np.arange(slots.size + 1)
    return StepInputs(
        prompt_tokens=NO_TOKENS,
        decode_slots=slots,
        positions=before,
        slot_mapping=sequences.slot_mapping(slots, before),
        adapters=sequences.adapter[slots],
        slots=slots,
        tables=sequences.tables(slots, context),
        query_start=each.astype(np.int32),
        context=context.astype(np.int32),
        sampled_rows=each[:-1],
        sampled_slots=slots,
        sampled_positions=context,
        prompt_chunks=[],
    )


def _ints(values: object) -> Ints:
    return np.array(values, np.int64)


def _check_slots(sequences: Sequences, slots: Ints, tokens: int) -> None:
    limits = sequences.limits
    if not slots.size:
        raise ProtocolError("the step has tokens, but no row for a sequence slot")
    if slots.max() >= limits.max_sequences:
        raise ProtocolError(f"sequence slot {slots.max()} is outside 0..{limits.max_sequences - 1}")
    if not (active := sequences.active[slots]).all():
        raise ProtocolError(f"the step has a row for slot {slots[~active][0]}, which holds no sequence")
    if len(set(slots.tolist())) != slots.size:
        raise ProtocolError("a sequence slot has two rows in one step")
    if tokens > limits.max_step_tokens:
        raise ProtocolError(f"the step has {tokens} tokens, the bound is {limits.max_step_tokens}")


def _check_chunks(
    sequences: Sequences,
    slots: Ints,
    lengths: Ints,
    starts: Ints,
    sample: npt.NDArray[np.bool_],
    tokens: Ints,
    next_token: object,
) -> None:
    if not slots.size == lengths.size == starts.size == sample.size == len(next_token):  # type: ignore[arg-type]
        raise ProtocolError("the arrays of the prefill rows differ in length")
    if (lengths < 1).any():
        raise ProtocolError("a prefill chunk has no tokens")
    if lengths.sum() != tokens.size:
        raise ProtocolError(f"{tokens.size} prompt tokens were sent for rows that count {lengths.sum()}")
    if tokens.size and tokens.max() >= sequences.vocab_size:
        raise ProtocolError(f"a prompt token is outside the vocabulary of {sequences.vocab_size}")
    if (starts != sequences.length[slots]).any():
        raise ProtocolError("a prefill chunk does not start where its sequence ends")


def _prompt_chunks(
    sequences: Sequences,
    prefill: pb.Prefill,
    slots: Ints,
    starts: Ints,
    query_start: npt.NDArray[np.int32],
    tokens: Ints,
) -> list[PromptChunk]:
    chunks = []
    for i in np.flatnonzero(sequences.prompt_logprobs[slots]).tolist():
        first, end = int(query_start[i]), int(query_start[i + 1])
        targets = tokens[first + 1 : end]
        if not prefill.sample[i]:
            # The chunk's last row predicts the first token of the next one.
            targets = np.append(targets, prefill.next_token[i])
        slot = int(slots[i])
        chunks.append(PromptChunk(slot, int(starts[i]), first, targets, int(sequences.prompt_top[slot])))
    return chunks
