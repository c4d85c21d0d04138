"""The sequence slots: what this shard remembers of each running sequence between steps."""

import numpy as np
import numpy.typing as npt
import torch

from lorikeet_server.device.base import Device
from lorikeet_server.engine.limits import Limits
from lorikeet_server.errors import ProtocolError
from lorikeet_server.pb import shard_pb2 as pb
from lorikeet_server.sampling.params import SamplingParams, SlotParams

Ints = npt.NDArray[np.int64]

# Divided by less, scores become infinite, and a row of them is no distribution.
MIN_REPETITION_PENALTY = 1e-30


class Sequences:
    """Arrays over slots. Metadata lives on the host, where steps arrive; only tokens stay on the device, so
    that a decode's input never makes a round trip."""

    def __init__(self, limits: Limits, vocab_size: int, device: Device) -> None:
        slots = limits.max_sequences
        self.limits = limits
        self.blocks = np.zeros((slots, limits.blocks_per_sequence), np.int32)
        self.held = np.zeros(slots, np.int64)  # blocks in use of each row
        self.used = 0  # blocks before this one have been given out, since the pool was allocated
        self.length = np.zeros(slots, np.int64)  # tokens whose KV is computed
        self.active = np.zeros(slots, np.bool_)
        self.adapter = np.full(slots, -1, np.int32)
        self.prompt_logprobs = np.zeros(slots, np.bool_)
        self.prompt_top = np.zeros(slots, np.int64)
        # One more, that stands for no sequence: padding rows take their token from it.
        self.last_token = torch.zeros(slots + 1, dtype=torch.int64, device=device.where)
        self.params = SlotParams(slots, vocab_size, device)
        self.vocab_size = vocab_size

    def admit(self, admission: pb.Admission) -> None:
        """Gives a sequence its slot. Raises ProtocolError if the slot is taken or a number is out of
        range."""
        slot, limits = admission.slot, self.limits
        if slot >= limits.max_sequences or self.active[slot]:
            raise ProtocolError(f"sequence slot {slot} is taken or outside 0..{limits.max_sequences - 1}")
        if not -1 <= admission.adapter_slot < limits.adapter_slots:
            raise ProtocolError(
                f"adapter slot {admission.adapter_slot} is outside -1..{limits.adapter_slots - 1}"
            )
        sampling = admission.sampling
        tokens = [*sampling.bias_tokens, *admission.history]
        if tokens and max(tokens) >= self.vocab_size:
            raise ProtocolError(f"a token of slot {slot} is outside the vocabulary of {self.vocab_size}")
        self.active[slot] = True
        self.held[slot] = 0
        self.length[slot] = admission.cached_tokens
        self.adapter[slot] = admission.adapter_slot
        self.prompt_logprobs[slot] = admission.prompt_logprobs
        self.prompt_top[slot] = min(admission.prompt_top_logprobs, self.vocab_size)
        self.params.admit(slot, sampling_params(sampling), admission.history, admission.history_output)
        cached = np.array(admission.blocks, np.int64)
        self.append_blocks(np.array([slot]), np.array([cached.size]), cached)

    def release(self, slots: Ints) -> None:
        """Forgets sequences. Releasing an empty slot is allowed: the sequence may have failed here."""
        if slots.size and slots.max() >= self.limits.max_sequences:
            raise ProtocolError(f"sequence slot {slots.max()} is outside 0..{self.limits.max_sequences - 1}")
        self.active[slots] = False
        for slot in slots.tolist():
            self.params.release(slot)

    def clear(self) -> None:
        self.active[:] = False
        self.params.clear()

    def append_blocks(self, slots: Ints, counts: Ints, blocks: Ints) -> None:
        """Appends `counts[i]` of the concatenated `blocks` to the table of `slots[i]`; slots are distinct."""
        if counts.sum() != blocks.size:
            raise ProtocolError(f"{blocks.size} blocks were sent for rows that count {counts.sum()}")
        if not blocks.size:
            return
        highest = int(blocks.max())
        if highest >= self.limits.num_blocks:
            raise ProtocolError(f"block {highest} is outside 0..{self.limits.num_blocks - 1}")
        self.used = max(self.used, highest + 1)
        held = self.held[slots]
        if (held + counts).max() > self.blocks.shape[1]:
            raise ProtocolError(f"a sequence was given more than {self.blocks.shape[1]} blocks")
        columns = np.arange(blocks.size) + np.repeat(held - (counts.cumsum() - counts), counts)
        self.blocks[np.repeat(slots, counts), columns] = blocks
        self.held[slots] = held + counts

    def extend(self, slots: Ints, rows: "Ints | int") -> tuple[Ints, Ints]:
        """Adds `rows` tokens to each of `slots`; returns how many each had and has. Raises ProtocolError."""
        before = self.length[slots]
        context = before + rows
        longest = self.limits.max_sequence_tokens
        if context.max() > longest:
            raise ProtocolError(f"a sequence would have {context.max()} tokens, the bound is {longest}")
        if (context > self.held[slots] * self.limits.block_size).any():
            raise ProtocolError("a sequence has fewer blocks than its tokens need")
        self.length[slots] = context
        return before, context

    def slot_mapping(self, slots: Ints, positions: Ints) -> Ints:
        """Where in the cache the tokens at `positions` of `slots` go: block * block_size + offset."""
        block, offset = np.divmod(positions, self.limits.block_size)
        return self.blocks[slots, block].astype(np.int64) * self.limits.block_size + offset

    def tables(self, slots: Ints, context: Ints) -> npt.NDArray[np.int32]:
        """Block tables `[slots, blocks of the longest]`."""
        return self.blocks[slots, : -(-int(context.max()) // self.limits.block_size)]


def sampling_params(sampling: pb.Sampling) -> SamplingParams:
    """The protocol's zeros mean off where the neutral value is another."""
    return SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p or 1.0,
        typical_p=sampling.typical_p or 1.0,
        repetition_penalty=max(sampling.repetition_penalty or 1.0, MIN_REPETITION_PENALTY),
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        seed=sampling.seed,
        top_logprobs=sampling.top_logprobs,
        bias_tokens=tuple(sampling.bias_tokens),
        bias_values=tuple(sampling.bias_values),
    )
