"""Adapters above a bound, that everyone wants at once, that change while they are
served, or overflow.
"""

from __future__ import annotations

import concurrent.futures
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.models import adapter_tensors, write_adapter
from support.server import Server, generate_body, token_ids

PROMPT = "Beside bad company"


@pytest.fixture(scope="module")
def roots(tiny_adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The good adapters, and a root to write others to."""
    return [tiny_adapters, tmp_path_factory.mktemp("changing")]


@pytest.fixture(scope="module")
def server(tiny: Path, roots: list[Path]) -> Iterator[Server]:
    with Server(str(tiny), roots, ["--dtype", "float32"]) as server:
        yield server


def test_c3_a_rank_above_the_bound_is_refused_with_its_flag(tiny: Path, tiny_adapters: Path) -> None:
    with Server(str(tiny), [tiny_adapters], ["--dtype", "float32", "--max-lora-rank", "8"]) as server:
        assert server.client.get("/info").json()["max_lora_rank"] == 8
        assert token_ids(server.generate(PROMPT, "a7", max_new_tokens=2))
        refused = server.post_generate(PROMPT, "a8")
        assert refused.status_code == 422
        assert "r to 9" in refused.json()["error"] and "1 to 8 (--max-lora-rank)" in refused.json()["error"]


def test_c6_two_hundred_ask_for_one_cold_adapter(server: Server, roots: list[Path]) -> None:
    write_adapter(roots[1] / "cold", rank=6, seed=99)
    before = server.metrics()
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        answers = list(
            pool.map(lambda _: token_ids(server.generate(PROMPT, "cold", max_new_tokens=4)), range(200))
        )
    assert len({tuple(answer) for answer in answers}) == 1
    after = server.metrics()
    for tier in ("store", "host"):
        loads = f'lorikeet_adapter_load_seconds_count{{tier="{tier}"}}'
        assert after[loads] - before.get(loads, 0) == 1


def test_c7_bytes_that_change_on_disk_do_not_change_what_is_served(server: Server, roots: list[Path]) -> None:
    served = write_adapter(roots[1] / "moving", rank=4, seed=1)
    copy = write_adapter(roots[1] / "moved", rank=4, seed=2)
    first = server.generate(PROMPT, "moving")
    write_adapter(served, rank=4, seed=2)
    for index in range(16):  # push it out of the device slots and back in
        server.generate(PROMPT, f"a{index}", max_new_tokens=1)
    assert token_ids(server.generate(PROMPT, "moving")) == token_ids(first)
    other = server.generate(PROMPT, "moved")
    assert token_ids(other) != token_ids(first)
    shutil.rmtree(served)
    shutil.rmtree(copy)
    assert token_ids(server.generate(PROMPT, "moving")) == token_ids(first)
    assert token_ids(server.generate(PROMPT, "moved")) == token_ids(other)


def test_d3_an_adapter_that_overflows_fails_alone(server: Server, roots: list[Path]) -> None:
    """Finite weights whose attention scores are not: only the requests that use them end in an error."""
    modules = ("q_proj", "k_proj")
    tensors = {name: torch.full_like(value, 6e4) for name, value in adapter_tensors(4, 0, modules).items()}
    write_adapter(roots[1] / "overflow", modules=modules, tensors=tensors, lora_alpha=1e9)
    expected = [token_ids(server.generate(PROMPT, f"a{index}")) for index in range(8)]
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        poisoned = pool.submit(server.client.post, "/generate", json=generate_body(PROMPT, "overflow"))
        good = [pool.submit(server.generate, PROMPT, f"a{index}") for index in range(8)]
        assert [token_ids(future.result()) for future in good] == expected
    assert poisoned.result().status_code == 424
    assert "numeric_error" in poisoned.result().text
