"""What Rust and Python have to agree on and the protocol does not carry: both mean the same."""

import re
from ast import literal_eval
from pathlib import Path

import pytest

from lorikeet_server import config
from lorikeet_server.service import listen

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("file", "name", "ours"),
    [
        ("router/src/shard/rank.rs", "MAX_MESSAGE", listen.MAX_MESSAGE_BYTES),
        ("router/src/shard/rank.rs", "TOKEN", listen.TOKEN),
        ("router/src/config.rs", "LARGEST_LORA_RANK", config.MAX_LORA_RANK),
        ("launcher/src/supervise/group.rs", "REFUSED", config.EXIT_CONFIG),
        ("launcher/src/supervise/group.rs", "ALONE", config.EXIT_ALONE),
        ("launcher/src/environment.rs", "CACHE_DIR", config.CACHE_DIR),
    ],
)
def test_rust_means_the_same(file: str, name: str, ours: int | str) -> None:
    found = re.search(rf"const {name}: \S+ = (.+);", (ROOT / file).read_text())
    assert found is not None, f"{file} has no {name}"
    value, _, shift = found[1].partition(" << ")
    theirs = literal_eval(value) << int(shift) if shift else literal_eval(value)
    assert theirs == ours
