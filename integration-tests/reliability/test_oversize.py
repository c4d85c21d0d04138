"""Requests that are larger than anything that is served."""

from __future__ import annotations

import json
import random
from string import ascii_lowercase

import psutil
import pytest
from support.server import Server, generate_body, token_ids


@pytest.fixture
def server(tiny_server: Server) -> Server:
    return tiny_server


def resident_bytes(server: Server) -> int:
    return psutil.Process(server.router().pid).memory_info().rss


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"stop": ["x"] * 1_000_000}, 413),
        ({"best_of": 1_000_000_000}, 422),
        ({"max_new_tokens": 1_000_000_000}, 422),
        ({"max_new_tokens": -1}, 422),
        ({"max_new_tokens": 2**63}, 422),
        ({"temperature": 1e400}, 400),
        ({"top_k": 0}, 422),
        ({"top_p": "1"}, 422),
        ({"seed": -1}, 422),
        ({"stop": None}, 200),
        ({"repetition_penalty": 0}, 422),
        ({"truncate": 0}, 422),
    ],
)
def test_o3_numbers_out_of_contract(server: Server, parameters: dict[str, object], status: int) -> None:
    text = json.dumps(generate_body("bounds", **parameters)).replace("Infinity", "1e400")
    response = server.client.post("/generate", content=text, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    if status != 200:
        assert set(response.json()) >= {"error", "error_type"}


def test_o3_oversize_is_refused_before_it_is_read(server: Server) -> None:
    expected = token_ids(server.generate("beside the flood", "a4"))
    before = resident_bytes(server)
    huge = server.client.post(
        "/generate",
        content=b'{"inputs": "' + b"a" * (100 << 20) + b'"}',
        headers={"content-type": "application/json"},
    )
    assert huge.status_code == 413
    assert huge.json()["error"]
    header = server.client.get("/health", headers={"x-big": "h" * (1 << 20)})
    assert header.status_code == 431
    long = server.client.post("/generate", json=generate_body("word " * 500_000))
    assert long.status_code == 422
    assert "byte" in long.json()["error"]
    bias = server.client.post(
        "/v1/completions",
        json={"model": "", "prompt": "x", "logit_bias": {str(i): 1 for i in range(1_000_000)}},
    )
    assert bias.status_code in (400, 413)
    assert resident_bytes(server) - before < 32 << 20
    assert token_ids(server.generate("beside the flood", "a4")) == expected


def test_o3_prompts_that_are_too_long_leave_nothing_behind(server: Server) -> None:
    """65,000 bytes, each a token of this model: as much as is ever tokenised. Of one word, and of words that
    all differ and are as long as the tokenizer remembers."""
    hostile = random.Random(3)
    words = ["".join(hostile.choices(ascii_lowercase, k=249)) for _ in range(90 * 260)]
    prompts = ["word " * 13_000] * 10 + [" ".join(words[i : i + 260]) for i in range(0, len(words), 260)]
    before = resident_bytes(server)
    for prompt in prompts:
        answer = server.client.post("/generate", json=generate_body(prompt))
        assert answer.status_code == 422
        assert f"Given: {len(prompt)} `inputs` tokens" in answer.json()["error"]
    assert resident_bytes(server) - before < 32 << 20
