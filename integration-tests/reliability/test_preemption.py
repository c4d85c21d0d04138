"""A KV cache that is too small for those who run: sequences are preempted and computed again all the time,
while others leave, and every answer is the one that the same request gets alone.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from support.models import HEADS, HIDDEN, KV_HEADS, LAYERS
from support.scale import scaled
from support.server import Server, generate_body, until

TOTAL = 512  # tokens of a sequence, at most
BLOCKS = TOTAL // 16 + 8
SMALL = {
    "--kv-cache-bytes": BLOCKS * 16 * 2 * LAYERS * KV_HEADS * HIDDEN // HEADS * 4,
    "--max-total-tokens": TOTAL,
    "--max-batch-size": 12,
    "--max-batch-prefill-tokens": 48,
    "--max-active-adapters": 3,
    "--threads-per-shard": 1,
}
TEXT = "The quick brown fox jumps over the lazy dog. " * 8
SECONDS = scaled(8, 600)
IDLE = ("queued_requests", "running_sequences", "kv_blocks_used", "adapters_pinned", "adapters_host_pinned")


def body(chance: random.Random) -> dict[str, Any]:
    """A request with some of what a sequence has to remember when it is preempted."""
    own, length = chance.randrange(16), chance.choice([1, 15, 16, 17, 33, 100, 250])
    parameters: dict[str, Any] = {
        "max_new_tokens": chance.choice([1, 2, 17, 40, 120, 250]),
        "ignore_eos_token": chance.random() < 0.7,
    }
    if chance.random() < 0.5:
        parameters |= {"do_sample": True, "seed": own, "temperature": 1.3, "top_p": 0.9}
    if chance.random() < 0.3:
        parameters |= {"repetition_penalty": 1.2, "frequency_penalty": 0.5}
    if chance.random() < 0.2:
        parameters["stop"] = [chance.choice(["ab", "e", " t"])]
    if chance.random() < 0.2:
        parameters["decoder_input_details"] = True
    adapter = f"a{own}" if chance.random() < 0.8 else None
    return generate_body(TEXT[own * chance.randrange(2) :][:length], adapter, top_n_tokens=2, **parameters)


def answer(server: Server, request: dict[str, Any]) -> dict[str, Any]:
    response = server.client.post("/generate", json=request)
    assert response.status_code == 200, response.text
    answered: dict[str, Any] = response.json()
    return answered


def leave(server: Server, request: dict[str, Any], after: int) -> None:
    """Takes so many lines of a stream."""
    parameters = {**request["parameters"], "decoder_input_details": False}
    streamed = {**request, "parameters": parameters}
    with server.client.stream("POST", "/generate_stream", json=streamed) as response:
        for _ in zip(range(after), response.iter_lines(), strict=False):
            pass


def test_who_is_preempted_says_the_same(tiny: Path, tiny_adapters: Path) -> None:
    chance = random.Random(11)
    requests = [body(chance) for _ in range(40)]
    flags = [str(word) for pair in SMALL.items() for word in pair]
    with Server(str(tiny), [tiny_adapters], ["--dtype", "float32", *flags]) as server:
        alone = [answer(server, request) for request in requests]
        end = time.monotonic() + SECONDS

        def client(number: int) -> None:
            own = random.Random(number)
            while time.monotonic() < end:
                index = own.randrange(len(requests))
                if own.random() < 0.3:
                    leave(server, requests[index], own.randrange(12))
                else:
                    assert answer(server, requests[index]) == alone[index], requests[index]

        with ThreadPoolExecutor(24) as pool:
            for done in [pool.submit(client, number) for number in range(24)]:
                done.result()
        assert server.metrics()["lorikeet_preemptions_total"] > 0

        def idle() -> bool:
            metrics = server.metrics()
            return not any(metrics[f"lorikeet_{gauge}"] for gauge in IDLE)

        until(idle, 10, "everything given back")
