"""The golden answers under every configuration that must not change them, sixteen requests at a time, cold
and warm.
"""

from __future__ import annotations

import concurrent.futures
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracle.golden import cases
from oracle.test_served import check
from support.machines import TwoMachines
from support.server import Server, token_ids

EXAMPLES = Path(__file__).parents[2] / "examples" / "adapters"
CONFIGURATIONS = {
    "chunked-prefill": ["--max-batch-prefill-tokens", "32", "--max-batch-size", "16"],
    "whole-prompts": [
        "--disable-prefix-cache",
        "--max-batch-prefill-tokens",
        "1024",
        "--max-batch-size",
        "16",
    ],
    "one-adapter-slot": ["--max-active-adapters", "1"],
    "little-kv": [
        "--kv-cache-bytes",
        str(1500 * 46080),
        "--max-input-length",
        "700",
        "--max-total-tokens",
        "1024",
    ],
    "two-ranks": ["--num-shard", "2"],
}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server("smollm2", [EXAMPLES], ["--dtype", "float32", *CONFIGURATIONS[request.param]]) as server:
        yield server


def test_a_prompt_is_computed_in_the_chunks_that_are_meant(
    server: Server, request: pytest.FixtureRequest
) -> None:
    """All at once, or in several steps. Before the other tests, while no prompt is in the KV cache."""
    longest = max(cases(), key=lambda case: len(case.rendered))
    before = server.metrics()["lorikeet_step_seconds_count"]
    answer = server.generate(longest.rendered, longest.adapter, max_new_tokens=1, decoder_input_details=True)
    assert token_ids(answer) == longest.tokens[:1]
    tokens, chunk = len(answer["details"]["prefill"]), server.client.get("/info").json()["max_step_tokens"]
    steps = server.metrics()["lorikeet_step_seconds_count"] - before
    assert steps == math.ceil(tokens / chunk)
    assert (steps == 1) == ("whole-prompts" in request.node.name)


def test_golden_answers_cold_and_warm(server: Server) -> None:
    everything = cases()
    for seed in (1, 2):  # the second time every prompt is in the KV cache, where there is one
        shuffled = random.Random(seed).sample(everything, len(everything))
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for done in [pool.submit(check, server, case) for case in shuffled]:
                done.result()


def test_golden_answers_of_two_machines() -> None:
    with TwoMachines("smollm2", [[EXAMPLES]], "--dtype", "float32") as machines:
        everything = cases()
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for done in [pool.submit(check, machines.first, case) for case in everything]:
                done.result()


def test_one_prompt_under_every_adapter_interleaved(server: Server) -> None:
    """The same tokens under base and each adapter share no KV: every answer is the golden one, whatever
    came before.
    """
    same = [case for case in cases() if case.prompt == "story"]
    for case in same * 2:
        assert (
            token_ids(server.generate(case.rendered, case.adapter, max_new_tokens=len(case.tokens)))
            == case.tokens
        )
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(check, server, case) for case in same * 4]:
            done.result()
