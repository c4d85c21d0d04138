"""A step that contradicts what the shard holds is refused, by what is wrong with it, and harms nothing."""

import re
from typing import Any

import pytest
from shard_driver import Driver, make_engine, prompt_of, tiny_model, warmup_request

from lorikeet_server.engine.engine import Engine
from lorikeet_server.errors import ProtocolError
from lorikeet_server.pb import shard_pb2 as pb


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = tmp_path_factory.mktemp("model")
    tiny_model(path, tie_word_embeddings=True)
    return make_engine(path, path / "store", "cpu")


def prefill_step(**fields: Any) -> pb.Step:
    rows = {"slot": [0], "start": [0], "length": [2], "tokens": [1, 2], "new_blocks": [1], "blocks": [0]}
    rows |= {"sample": [True], "next_token": [0]}
    admission = pb.Admission(slot=0, adapter_slot=-1, sampling=pb.Sampling())
    return pb.Step(admissions=[admission], prefill=pb.Prefill(**(rows | fields)))


def admission_step(**fields: Any) -> pb.Step:
    return pb.Step(admissions=[pb.Admission(**({"slot": 0, "adapter_slot": -1} | fields))])


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (pb.Step(decode=pb.Decode(slot=[4], new_blocks=[0])), "row for slot 4, which holds no sequence"),
        (pb.Step(decode=pb.Decode(slot=[400], new_blocks=[0])), "sequence slot 400 is outside 0..7"),
        (pb.Step(releases=[99]), "sequence slot 99 is outside 0..7"),
        (pb.Step(moves=[pb.AdapterMove(slot=9)]), "adapter slot 9 is outside 0..3"),
        (admission_step(adapter_slot=7), "adapter slot 7 is outside -1..3"),
        (admission_step(slot=8), "sequence slot 8 is taken or outside 0..7"),
        (admission_step(blocks=[100_000]), "block 100000 is outside 0.."),
        (admission_step(blocks=list(range(17))), "given more than 16 blocks"),
        (admission_step(history=[500]), "a token of slot 0 is outside the vocabulary of 199"),
        (prefill_step(tokens=[1, 2, 3]), "3 prompt tokens were sent for rows that count 2"),
        (prefill_step(tokens=[1, 199]), "a prompt token is outside the vocabulary of 199"),
        (prefill_step(start=[3]), "does not start where its sequence ends"),
        (prefill_step(sample=[]), "arrays of the prefill rows differ in length"),
        (prefill_step(length=[0], tokens=[]), "a prefill chunk has no tokens"),
        (prefill_step(blocks=[]), "0 blocks were sent for rows that count 1"),
        (prefill_step(new_blocks=[0], blocks=[]), "fewer blocks than its tokens need"),
        (prefill_step(length=[17], tokens=[1] * 17), "fewer blocks than its tokens need"),
        (
            prefill_step(length=[257], tokens=[1] * 257, new_blocks=[16], blocks=list(range(16))),
            "the step has 257 tokens, the bound is 256",
        ),
        (
            prefill_step(
                **{"slot": [0, 0], "start": [0, 0], "length": [1, 1], "new_blocks": [1, 0]},
                **{"sample": [True] * 2, "next_token": [0] * 2},
            ),
            "a sequence slot has two rows",
        ),
    ],
)
def test_a_step_that_cannot_be_is_refused(engine: Engine, step: pb.Step, words: str) -> None:
    engine.warmup(warmup_request())
    driver = Driver(engine)
    with pytest.raises(ProtocolError, match=re.escape(words)):
        driver.execute(step)
    engine.reset()
    (after,) = driver.generate([prompt_of(5, 1)], 2)
    assert after.errors == []


def test_a_sequence_ends_where_the_rotary_table_does(engine: Engine) -> None:
    """Also where the bound lies within a block."""
    engine.warmup(warmup_request(max_sequence_tokens=30))
    driver = Driver(engine)
    (run,) = driver.generate([prompt_of(28, 1)], 3)
    assert len(run.tokens) == 3 and run.errors == []
    with pytest.raises(ProtocolError, match="31 tokens, the bound is 30"):
        driver.generate([prompt_of(28, 1)], 4)
