"""The layout of a step."""

from copy import deepcopy
from dataclasses import fields

import numpy as np
import pytest
import torch

from lorikeet_server.device.choose import open_device
from lorikeet_server.engine.inputs import build_inputs, decode_inputs, mixed_inputs
from lorikeet_server.engine.limits import Limits
from lorikeet_server.engine.sequences import Sequences
from lorikeet_server.errors import ProtocolError
from lorikeet_server.pb import shard_pb2 as pb

LIMITS = Limits(
    block_size=16,
    num_blocks=100,
    max_sequences=8,
    max_step_tokens=64,
    adapter_slots=4,
    max_sequence_tokens=200,
)


@pytest.fixture
def sequences() -> Sequences:
    """Slots 1, 4 and 6 hold sequences of 15, 16 and 33 tokens, in the blocks that these need."""
    held = Sequences(LIMITS, 50, open_device(torch.device("cpu")))
    for slot, tokens, adapter in ((1, 15, -1), (4, 16, 2), (6, 33, 0)):
        blocks = range(10 * slot, 10 * slot + -(-tokens // 16))
        held.admit(pb.Admission(slot=slot, cached_tokens=tokens, blocks=blocks, adapter_slot=adapter))
    return held


def test_decodes_alone_are_laid_out_as_among_chunks(sequences: Sequences) -> None:
    step = pb.Step(decode=pb.Decode(slot=[6, 1, 4], new_blocks=[0, 0, 1], blocks=[77]))
    twin = deepcopy(sequences)
    alone, among = decode_inputs(step.decode, sequences), mixed_inputs(step, twin)
    for field in fields(alone):
        ours, theirs = getattr(alone, field.name), getattr(among, field.name)
        assert np.array_equal(ours, theirs), field.name
        assert getattr(ours, "dtype", None) == getattr(theirs, "dtype", None), field.name
    assert alone.positions.tolist() == [33, 15, 16]
    assert alone.slot_mapping.tolist() == [62 * 16 + 1, 10 * 16 + 15, 77 * 16]
    assert np.array_equal(sequences.length, twin.length)


@pytest.mark.parametrize(
    ("decode", "words"),
    [
        (pb.Decode(slot=[1, 1], new_blocks=[0, 0]), "two rows"),
        (pb.Decode(slot=[2], new_blocks=[0]), "slot 2, which holds no sequence"),
        (pb.Decode(slot=[8], new_blocks=[0]), "slot 8 is outside"),
        (pb.Decode(slot=[4], new_blocks=[0]), "fewer blocks"),
        (pb.Decode(slot=[4], new_blocks=[1]), "0 blocks were sent for rows that count 1"),
        (pb.Decode(slot=[4], new_blocks=[1], blocks=[100]), "block 100 is outside 0..99"),
    ],
)
def test_decodes_that_cannot_be_are_refused(sequences: Sequences, decode: pb.Decode, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        build_inputs(pb.Step(decode=decode), sequences)


def test_tokens_without_a_chunk_are_refused(sequences: Sequences) -> None:
    with pytest.raises(ProtocolError, match="2 prompt tokens were sent for rows that count 0"):
        step = pb.Step(decode=pb.Decode(slot=[1], new_blocks=[0]), prefill=pb.Prefill(tokens=[3, 4]))
        build_inputs(step, sequences)


def test_a_step_without_rows_has_no_layout(sequences: Sequences) -> None:
    assert build_inputs(pb.Step(), sequences) is None
