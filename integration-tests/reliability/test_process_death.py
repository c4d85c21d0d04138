"""Processes that die or freeze, and what the others do about it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.in_flight import InFlight, long_bodies, running
from support.models import write_adapter
from support.scale import scaled
from support.server import Server, generate_body, token_ids, until

KILLS = scaled(3, 46)  # at random times, beside those that are aimed
EVERYTHING = tuple(f"{module}_proj" for module in ("q", "k", "v", "o", "gate", "up", "down"))
ENDS = {"200", "502", "503", "error event"}
"""How a request may end when its shard is killed: answered before, refused, or told."""


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with adapters `c0` .. `c29`, of 6 MB each."""
    root = tmp_path_factory.mktemp("cold")
    for index in range(30):
        write_adapter(root / f"c{index}", rank=512, seed=index, modules=EVERYTHING)
    return root


@pytest.fixture(scope="module")
def server(tiny: Path, tiny_adapters: Path, cold: Path) -> Iterator[Server]:
    with Server(str(tiny), [tiny_adapters, cold], ["--dtype", "float32"]) as server:
        yield server


def answers(server: Server) -> list[list[int]]:
    return [token_ids(server.generate("the same as before", f"a{index}")) for index in range(4)]


def kill_shard(server: Server, requests: InFlight) -> set[str]:
    """How the requests end when the shard is killed. It comes back."""
    shard = server.shards()[0]
    killed = time.monotonic()
    shard.kill()
    until(lambda: server.health() == 503, 1, "readiness false", every=0.005)
    ends = requests.join(killed, 2)
    server.wait_ready(60)
    assert server.shards()[0].pid != shard.pid
    return ends


def prompts(count: int) -> list[dict[str, Any]]:
    """Requests that take many steps to their first token, and end with it."""
    return [generate_body(f"{index} " * 1500, f"a{index}", max_new_tokens=1) for index in range(count)]


def test_p1_a_shard_killed_at_rest_comes_back(server: Server) -> None:
    before = answers(server)
    kill_shard(server, InFlight(server, []))
    assert answers(server) == before


@pytest.mark.parametrize("bodies", [prompts(8), long_bodies(8)], ids=["prefill", "decode"])
def test_p1_a_shard_killed_at_work_ends_its_requests(server: Server, bodies: list[dict[str, Any]]) -> None:
    before = answers(server)
    requests = InFlight(server, bodies)
    running(server, 6)
    assert kill_shard(server, requests) <= ENDS - {"200"}
    assert answers(server) == before


def test_p1_a_shard_killed_while_adapters_load(server: Server, cold: Path) -> None:
    before = answers(server)
    bodies = [generate_body("cold", f"c{index}", max_new_tokens=4) for index in range(30)]
    requests = InFlight(server, bodies)
    until(lambda: server.metrics()["lorikeet_adapter_flights"] >= 8, 10, "loads under way", every=0.001)
    ends = kill_shard(server, requests)
    assert ends <= ENDS and ends != {"200"}
    assert answers(server) == before
    for body in bodies:  # whatever its load had come to
        assert server.client.post("/generate", json=body).status_code == 200


def test_p1_kills_at_random_times_lose_nothing(tiny: Path, tiny_adapters: Path) -> None:
    chance = random.Random(11)
    arguments = ["--dtype", "float32", "--max-shard-restarts", str(KILLS)]
    with Server(str(tiny), [tiny_adapters], arguments) as server:
        before = answers(server)
        for _ in range(KILLS):
            requests = InFlight(server, long_bodies(6, max_new_tokens=300))
            time.sleep(chance.uniform(0.0, 0.5))
            assert kill_shard(server, requests) <= ENDS
            assert answers(server) == before


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [([], 6), (["--request-timeout", "2"], 3), (["--num-shard", "2"], 6)],
    ids=["loss", "deadline", "one of two"],
)
def test_p2_a_frozen_shard_is_noticed_and_its_stale_results_are_dropped(
    tiny: Path, tiny_adapters: Path, arguments: list[str], seconds: float
) -> None:
    """Its requests end when it is noticed, or with their deadline if that is sooner. One of several
    may be inside another step than the rest: all start again.
    """
    with Server(str(tiny), [tiny_adapters], ["--dtype", "float32", *arguments]) as server:
        before = answers(server)
        requests = InFlight(server, long_bodies(6))
        running(server, 4)
        shard = server.shards()[0]
        frozen = time.monotonic()
        shard.suspend()
        try:
            until(lambda: server.health() == 503, 5, "readiness false", every=0.01)
            assert requests.join(frozen, seconds) <= {"502", "503", "504", "error event"}
            refused = server.post_generate("while frozen")
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error_type"] == "overloaded"
            time.sleep(max(0.0, frozen + scaled(8, 30) - time.monotonic()))
            assert not shard.is_running() or server.health() == 503, "ready though its shard is frozen"
        finally:
            if shard.is_running():
                shard.resume()
        server.wait_ready(60)
        assert answers(server) == before


@pytest.mark.parametrize("victim", ["launcher", "router"])
def test_p4_nothing_outlives_a_killed_launcher_or_router(
    tiny: Path, tiny_adapters: Path, victim: str
) -> None:
    server = Server(str(tiny), [tiny_adapters], ["--dtype", "float32"])
    for _ in range(scaled(2, 100)):  # the second round starts beside whatever the first left behind
        server.spawn().wait_ready(120)
        family = server.family()
        requests = InFlight(server, long_bodies(4))
        running(server, 2)
        killed = time.monotonic()
        if victim == "launcher":
            os.kill(server.process.pid, signal.SIGKILL)
        else:
            server.router().kill()
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive, [p.cmdline() for p in alive]
        requests.join(killed, 6)
        assert server.process.wait(5) != 0
    server.stop()
