"""The golden answers under every configuration that must not change them, sixteen requests at a time, cold
and warm.
"""

from __future__ import annotations

import concurrent.futures
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracle.golden import cases
from oracle.test_served import check
from support.server import Server, token_ids

EXAMPLES = Path(__file__).parents[2] / "examples" / "adapters"
CONFIGURATIONS = {
    "chunked-prefill": ["--max-batch-prefill-tokens", "32", "--max-batch-size", "16"],
    "no-prefix-cache": ["--disable-prefix-cache", "--max-batch-size", "16"],
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


def test_golden_answers_cold_and_warm(server: Server) -> None:
    everything = cases()
    for seed in (1, 2):  # the second time every prompt is in the KV cache, where there is one
        shuffled = random.Random(seed).sample(everything, len(everything))
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for done in [pool.submit(check, server, case) for case in shuffled]:
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
