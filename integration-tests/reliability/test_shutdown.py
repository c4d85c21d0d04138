"""Rows G1 and G3: SIGTERM drains, a second one does not wait."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from support.server import Server, generate_body, until


@pytest.fixture
def server(tiny: Path, tiny_adapters: Path) -> Server:
    server = Server(str(tiny), [tiny_adapters], ["--dtype", "float32"])
    server.spawn().wait_ready(120)
    return server


def streams(
    server: Server, count: int, max_new_tokens: int, ends: list[dict[str, object]]
) -> list[threading.Thread]:
    def run(index: int) -> None:
        body = generate_body(
            f"drain {index}", f"a{index % 16}", max_new_tokens=max_new_tokens, ignore_eos_token=True
        )
        tokens, last = 0, {}
        try:
            with httpx.stream(
                "POST", server.url + "/generate_stream", json=body, timeout=60, trust_env=False
            ) as r:
                for line in r.iter_lines():
                    if line.startswith("data:"):
                        last = json.loads(line[5:])
                        tokens += "token" in last
        except httpx.HTTPError as error:
            last = {"transport": repr(error)}
        ends.append({"tokens": tokens, "last": last})

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_g1_sigterm_lets_what_runs_finish_and_refuses_the_rest(server: Server) -> None:
    ends: list[dict[str, object]] = []
    threads = streams(server, 8, 400, ends)
    until(lambda: server.metrics().get("lorikeet_running_sequences", 0) >= 8, 20, "8 running")
    family = server.family()
    os.kill(server.process.pid, signal.SIGTERM)
    until(lambda: server.health() in (503, 0), 1, "readiness false", every=0.01)
    for thread in threads:
        thread.join(60)
    assert len(ends) == 8
    assert all(end["tokens"] == 400 and end["last"]["generated_text"] for end in ends), ends  # type: ignore[index]
    assert server.process.wait(20) == 0
    assert not psutil.wait_procs(family, timeout=5)[1]


def test_g1_what_cannot_finish_in_time_gets_a_terminal_event(tiny: Path, tiny_adapters: Path) -> None:
    server = Server(str(tiny), [tiny_adapters], ["--dtype", "float32", "--drain-timeout", "1"])
    server.spawn().wait_ready(120)
    ends: list[dict[str, object]] = []
    threads = streams(server, 4, 3500, ends)
    until(lambda: server.metrics().get("lorikeet_running_sequences", 0) >= 4, 20, "4 running")
    os.kill(server.process.pid, signal.SIGTERM)
    for thread in threads:
        thread.join(20)
    assert len(ends) == 4
    assert all("error" in end["last"] or end["tokens"] == 3500 for end in ends), ends  # type: ignore[operator]
    assert server.process.wait(20) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_g3_a_second_signal_ends_the_drain_without_orphans(server: Server, second: signal.Signals) -> None:
    ends: list[dict[str, object]] = []
    threads = streams(server, 4, 3500, ends)
    until(lambda: server.metrics().get("lorikeet_running_sequences", 0) >= 4, 20, "4 running")
    family = server.family()
    os.kill(server.process.pid, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(server.process.pid, second)
    assert server.process.wait(5) is not None
    assert not psutil.wait_procs(family, timeout=5)[1]
    for thread in threads:
        thread.join(10)
    assert len(ends) == 4
