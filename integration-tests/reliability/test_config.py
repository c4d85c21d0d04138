"""A wrong flag ends the start within two seconds with one line that names it."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest
from support.server import BINARY, free_port


def refused(*arguments: str) -> str:
    started = time.monotonic()
    done = subprocess.run(
        [BINARY, "serve", *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    seconds = time.monotonic() - started
    assert done.returncode != 0, done.stderr
    assert seconds < 2, f"{seconds:.1f} s: {done.stderr}"
    assert "panicked" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["--model-id", "smollm2", "--port", "99999"], "--port"),
        (["--model-id", "smollm2", "--port", "many"], "--port"),
        (["--model-id", "smollm2", "--dtype", "int3"], "--dtype"),
        (["--model-id", "smollm2", "--num-shard", "0"], "--num-shard"),
        (["--model-id", "/no/such/model"], "--model-id"),
        (["--model-id", "smollm2", "--adapter-root", "/no/such/root"], "--adapter-root"),
        (["--model-id", "smollm2", "--hostname", "not an address"], "--hostname"),
        (
            ["--model-id", "smollm2", "--max-input-length", "100", "--max-total-tokens", "50"],
            "--max-total-tokens",
        ),
        (["--model-id", "smollm2", "--max-best-of", "0"], "--max-best-of"),
        (["--model-id", "smollm2", "--max-batch-size", "0"], "--max-batch-size"),
        (["--model-id", "smollm2", "--max-active-adapters", "-1"], "--max-active-adapters"),
        (["--model-id", "smollm2", "--max-lora-rank", "1024"], "at most 512"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else None,
)
def test_e1_a_wrong_flag_is_named(arguments: list[str], phrase: str) -> None:
    assert phrase in refused(*arguments)


def test_g4_a_drain_longer_than_the_grace_period_is_refused() -> None:
    line = refused("--model-id", "smollm2", "--termination-grace-period", "30", "--drain-timeout", "60")
    assert "--termination-grace-period 30" in line and "--drain-timeout 20" in line


def test_e1_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in refused("--model-id", "smollm2", "--port", str(port))


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "*.safetensors"])
def test_e1_what_a_model_directory_lacks_is_named(tmp_path: Path, missing: str) -> None:
    for name in {"config.json", "tokenizer.json"} - {missing}:
        (tmp_path / name).write_text("{}")
    error = refused("--model-id", str(tmp_path), "--port", str(free_port()))
    assert f"--model-id {tmp_path} has no {missing}" in error
