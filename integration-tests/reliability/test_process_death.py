"""Rows P1, P2 and P4: processes that die or freeze, and what the others do about it."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from support.server import Server, generate_body, token_ids, until

LONG = 1500


@pytest.fixture
def server(tiny: Path, tiny_adapters: Path) -> Iterator[Server]:
    with Server(str(tiny), [tiny_adapters], ["--dtype", "float32", "--max-shard-restarts", "20"]) as server:
        yield server


class InFlight:
    """Requests running in threads, streamed and not; every one must come to an end."""

    def __init__(self, server: Server, count: int, max_new_tokens: int = LONG) -> None:
        self.ends: list[str] = []
        self.threads = [
            threading.Thread(target=self._run, args=(server, index, max_new_tokens)) for index in range(count)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, server: Server, index: int, max_new_tokens: int) -> None:
        adapter = f"a{index % 16}" if index % 3 else None
        body = generate_body(
            f"request {index}", adapter, max_new_tokens=max_new_tokens, ignore_eos_token=True
        )
        end = "nothing"
        try:
            if index % 2:
                end = str(
                    httpx.post(server.url + "/generate", json=body, timeout=60, trust_env=False).status_code
                )
            else:
                with httpx.stream(
                    "POST", server.url + "/generate_stream", json=body, timeout=60, trust_env=False
                ) as r:
                    end = str(r.status_code)
                    for line in r.iter_lines():
                        if line.startswith("data:"):
                            end = "error event" if '"error"' in line else "tokens"
        except httpx.HTTPError as error:
            end = type(error).__name__
        self.ends.append(end)

    def join(self, seconds: float) -> list[str]:
        deadline = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        hanging = sum(thread.is_alive() for thread in self.threads)
        assert not hanging, f"{hanging} of {len(self.threads)} requests hang; ended: {self.ends}"
        return self.ends


def running(server: Server, at_least: int) -> None:
    until(
        lambda: server.metrics().get("lorikeet_running_sequences", 0) >= at_least, 20, f"{at_least} running"
    )


def test_p1_a_killed_shard_ends_its_requests_and_comes_back(server: Server) -> None:
    expected = token_ids(server.generate("the same as before", "a3"))
    requests = InFlight(server, 8)
    running(server, 4)
    killed = server.shards()[0]
    killed.kill()
    until(lambda: server.health() == 503, 1, "readiness false", every=0.01)
    ends = requests.join(3)
    assert set(ends) <= {"502", "503", "error event"}, ends
    server.wait_ready(60)
    assert server.shards()[0].pid != killed.pid
    assert token_ids(server.generate("the same as before", "a3")) == expected


def test_p1_kills_at_random_times_lose_nothing(server: Server) -> None:
    expected = token_ids(server.generate("stable", "a5"))
    chance = random.Random(11)
    for _ in range(4):
        requests = InFlight(server, 6, max_new_tokens=300)
        time.sleep(chance.uniform(0.0, 0.5))
        for shard in server.shards():
            shard.kill()
        until(lambda: server.health() == 503, 1, "readiness false", every=0.01)
        assert len(requests.join(8)) == 6
        server.wait_ready(60)
        assert token_ids(server.generate("stable", "a5")) == expected


def test_p2_a_frozen_shard_is_noticed_and_its_stale_results_are_dropped(server: Server) -> None:
    expected = token_ids(server.generate("after the thaw", "a2"))
    requests = InFlight(server, 6)
    running(server, 4)
    shard = server.shards()[0]
    shard.suspend()
    try:
        until(lambda: server.health() == 503, 6, "readiness false")
        ends = requests.join(10)
        assert set(ends) <= {"502", "503", "504", "error event"}, ends
        refused = server.post_generate("while frozen")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error_type"] == "overloaded"
    finally:
        if shard.is_running():
            shard.resume()
    server.wait_ready(60)
    assert token_ids(server.generate("after the thaw", "a2")) == expected


@pytest.mark.parametrize("victim", ["launcher", "router"])
def test_p4_nothing_outlives_a_killed_launcher_or_router(
    tiny: Path, tiny_adapters: Path, victim: str
) -> None:
    server = Server(str(tiny), [tiny_adapters], ["--dtype", "float32"])
    for _ in range(2):  # the second round starts beside whatever the first left behind
        server.spawn().wait_ready(120)
        family = server.family()
        requests = InFlight(server, 4)
        running(server, 2)
        if victim == "launcher":
            os.kill(server.process.pid, signal.SIGKILL)
        else:
            server.router().kill()
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive, [p.cmdline() for p in alive]
        requests.join(10)
        assert server.process.wait(5) != 0
    server.stop()
