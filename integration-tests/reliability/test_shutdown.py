"""SIGTERM drains, a second one does not wait."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from support.scale import scaled
from support.server import Server, generate_body, until

LONG = 3500


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


class Visitors:
    """Clients that send one short request after another, each over a connection of its own, until the first
    that is refused: (when it was sent, what came of it) of each.
    """

    def __init__(self, server: Server, count: int) -> None:
        self.visits: list[tuple[float, str]] = []
        self.threads = [threading.Thread(target=self._run, args=(server, index)) for index in range(count)]
        for thread in self.threads:
            thread.start()

    def _run(self, server: Server, index: int) -> None:
        body = json.dumps(generate_body(f"visit {index}", f"a{index}", max_new_tokens=2)).encode()
        request = (
            b"POST /generate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        outcome = "answered"
        while outcome == "answered":
            sent, reply = time.monotonic(), b""
            try:
                with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
                    connection.sendall(request)
                    while received := connection.recv(1 << 16):
                        reply += received
            except ConnectionError:
                pass  # before the first byte of a reply: refused; after it: lost
            whole = reply.startswith(b"HTTP/1.1 200 ") and reply.endswith(b"}") and b"generated_text" in reply
            # Told to come again, if the connection was made in the moment in which the lame-duck time ended.
            told = (
                reply.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: " in reply and reply.endswith(b"}")
            )
            outcome = "answered" if whole else "refused" if told or not reply else f"lost {reply!r}"
            self.visits.append((sent, outcome))


@pytest.mark.parametrize("drain", range(scaled(1, 20)))
def test_g1_a_drain_loses_nothing(tiny: Path, tiny_adapters: Path, drain: int) -> None:
    """Not ready at once, but open to new requests for the lame-duck time, and closed after it. Every request
    that was taken is answered in full, those that outlast the lame-duck time too.
    """
    lame_duck = 1.5
    arguments = ["--dtype", "float32", "--lame-duck-timeout", str(lame_duck), "--drain-timeout", "60"]
    server = Server(str(tiny), [tiny_adapters], arguments)
    server.spawn().wait_ready(120)
    ends: list[dict[str, object]] = []
    threads = streams(server, 8, LONG, ends)
    visitors = Visitors(server, 4)
    until(lambda: server.metrics().get("lorikeet_running_sequences", 0) >= 8, 20, "8 running")
    family = server.family()
    signalled = time.monotonic()
    os.kill(server.process.pid, signal.SIGTERM)
    until(lambda: server.health() != 200, 1, "readiness false", every=0.01)
    while time.monotonic() < signalled + lame_duck - 0.3:
        assert server.health() == 503
        time.sleep(0.02)
    until(lambda: server.health() == 0, 2, "no more connections", every=0.01)
    assert all(thread.is_alive() for thread in threads), "the streams end too early to show anything"
    for thread in (*threads, *visitors.threads):
        thread.join(60)
    assert len(ends) == 8
    assert all(end["tokens"] == LONG and end["last"]["generated_text"] for end in ends), ends  # type: ignore[index]
    assert {outcome for _, outcome in visitors.visits} == {"answered", "refused"}, visitors.visits
    refused = [sent - signalled for sent, outcome in visitors.visits if outcome == "refused"]
    assert lame_duck - 0.1 < min(refused) and max(refused) < lame_duck + 2, refused
    assert server.process.wait(20) == 0
    assert not psutil.wait_procs(family, timeout=5)[1]


def test_g1_what_cannot_finish_in_time_gets_a_terminal_event(tiny: Path, tiny_adapters: Path) -> None:
    server = Server(str(tiny), [tiny_adapters], ["--dtype", "float32", "--drain-timeout", "1"])
    server.spawn().wait_ready(120)
    ends: list[dict[str, object]] = []
    threads = streams(server, 4, LONG, ends)
    until(lambda: server.metrics().get("lorikeet_running_sequences", 0) >= 4, 20, "4 running")
    os.kill(server.process.pid, signal.SIGTERM)
    for thread in threads:
        thread.join(20)
    assert len(ends) == 4
    assert all("error" in end["last"] or end["tokens"] == LONG for end in ends), ends  # type: ignore[operator]
    assert server.process.wait(20) == 0


def test_a_signal_to_all_processes_at_once_drains_too(server: Server) -> None:
    """As systemd sends it."""
    ends: list[dict[str, object]] = []
    threads = streams(server, 4, LONG, ends)
    until(lambda: server.metrics().get("lorikeet_running_sequences", 0) >= 4, 20, "4 running")
    family = server.family()
    os.kill(server.process.pid, signal.SIGTERM)
    for process in family:
        process.terminate()
    for thread in threads:
        thread.join(60)
    assert [end["tokens"] for end in ends] == [LONG] * 4, ends
    assert server.process.wait(20) == 0
    assert not psutil.wait_procs(family, timeout=5)[1]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_g3_a_second_signal_ends_the_drain_without_orphans(server: Server, second: signal.Signals) -> None:
    ends: list[dict[str, object]] = []
    threads = streams(server, 4, LONG, ends)
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
