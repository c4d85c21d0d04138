"""Rows C1 to C4, C6, C7 and D3: adapters that are broken, hostile, wanted by everyone at once, or change
while served.
"""

from __future__ import annotations

import concurrent.futures
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from support.corpus import CORPUS, TRAVERSAL, Bad, write_corpus
from support.models import adapter_tensors, write_adapter
from support.server import Server, generate_body, token_ids

PROMPT = "Beside bad company"


@pytest.fixture(scope="module")
def roots(tiny_adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The good adapters, and a root to write bad and changing ones to."""
    return [tiny_adapters, tmp_path_factory.mktemp("hostile") / "root"]


@pytest.fixture(scope="module")
def server(tiny: Path, roots: list[Path]) -> Iterator[Server]:
    roots[1].mkdir()
    write_corpus(roots[1])
    with Server(str(tiny), roots, ["--dtype", "float32"]) as server:
        yield server


@pytest.mark.parametrize("bad", CORPUS, ids=lambda bad: bad.name)
def test_c1_to_c4_a_bad_adapter_is_refused_by_name(server: Server, roots: list[Path], bad: Bad) -> None:
    started = time.monotonic()
    response = server.post_generate(PROMPT, bad.name)
    seconds = time.monotonic() - started
    assert response.status_code in bad.statuses, response.text
    body = response.json()
    assert bad.phrase.lower() in body["error"].lower(), body
    assert str(roots[1]) not in body["error"], "the error leaks a path of this machine"
    assert seconds < 2
    assert not (roots[1] / bad.name / "canary").exists()
    chat = server.client.post("/v1/completions", json={"model": bad.name, "prompt": PROMPT})
    assert chat.status_code in {*bad.statuses, 400}, chat.text
    assert chat.json()["error"]["message"]


def test_c1_bad_requests_leave_the_good_ones_beside_them_alone(server: Server) -> None:
    """15 good requests beside one bad, for every bad adapter there is."""
    expected = [token_ids(server.generate(PROMPT, f"a{index}")) for index in range(15)]
    with concurrent.futures.ThreadPoolExecutor(17) as pool:
        for bad in CORPUS[::4]:
            good = [pool.submit(server.generate, PROMPT, f"a{index}") for index in range(15)]
            refused = pool.submit(server.post_generate, PROMPT, bad.name)
            assert [token_ids(future.result()) for future in good] == expected
            assert refused.result().status_code in bad.statuses


def test_c2_memory_does_not_grow_with_refusals(server: Server) -> None:
    shard = psutil.Process(server.shards()[0].pid)
    before = shard.memory_info().rss
    for _ in range(3):
        for bad in CORPUS:
            server.post_generate(PROMPT, bad.name)
    assert shard.memory_info().rss - before < 48 << 20


@pytest.mark.parametrize("adapter", TRAVERSAL, ids=lambda text: ascii(text)[:24])
def test_c4_no_way_out_of_the_roots(server: Server, adapter: str) -> None:
    response = server.post_generate(PROMPT, adapter)
    assert 400 <= response.status_code < 500, response.text
    assert set(response.json()) >= {"error", "error_type"}
    assert "x" not in response.headers, "a header was injected"
    assert "panicked" not in server.log()


def test_c4_the_unknown_and_the_forbidden_look_alike(server: Server) -> None:
    unknown = server.post_generate(PROMPT, "link-nowhere")
    assert unknown.status_code == 404
    assert unknown.json()["error_type"] == "adapter_not_found"


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
    fetches = 'lorikeet_adapter_load_seconds_count{tier="store"}'
    assert after[fetches] - before.get(fetches, 0) == 1


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
