"""Clients that read slowly or not at all, never finish their request, or take all back."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.load import p99
from support.raw import back_to_zero, head, rapid_resets, raw_request, until_closed
from support.server import Server, generate_body, token_ids, until

WRITE_TIMEOUT, HEADER_TIMEOUT = 2, 15  # the latter is the default
IDLE = min(5000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 500)
MATES_SLOWER, OTHERS_SLOWER = 1.1, 1.2  # in one of the rounds: another process may spoil the rest
ROUNDS = 6
HELD = 8 << 20  # bytes that the router may hold for four streams, whose text comes to twice that
ENHANCE_YOUR_CALM = (11).to_bytes(4, "big")


@pytest.fixture(scope="module")
def server(tiny: Path, tiny_adapters: Path) -> Iterator[Server]:
    """With a core for the shard, and one for those who ask it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    arguments = ["--write-timeout", str(WRITE_TIMEOUT), "--threads-per-shard", "1"]
    with Server(str(tiny), [tiny_adapters], ["--dtype", "float32", *arguments]) as server:
        for index in range(16):
            server.generate("stage", f"a{index}", max_new_tokens=1)
        yield server
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def talkative(index: int) -> dict[str, Any]:
    """A stream of megabytes, more than any buffer between here and there holds."""
    return generate_body(
        f"slow {index}", f"a{index}", max_new_tokens=3500, top_n_tokens=20, ignore_eos_token=True
    )


def seconds_per_token(server: Server) -> float:
    events = server.stream("beside others", "a7", max_new_tokens=300, ignore_eos_token=True)
    times = [time.monotonic() for _ in events]
    return (times[-1] - times[20]) / (len(times) - 21)


def test_k2_a_reader_that_stops_harms_only_itself(server: Server) -> None:
    """It is cut when it has taken nothing for the write timeout. Nothing piles up for it meanwhile, and its
    batch mates do not wait for it.
    """
    expected = token_ids(server.generate("beside a slow reader", "a7", max_new_tokens=64))
    router, ratios = psutil.Process(server.router().pid), []
    for _ in range(ROUNDS):
        before, asked = router.memory_info().rss, time.monotonic()
        stopped = [raw_request(server, "/generate_stream", talkative(index)) for index in range(4)]
        until(lambda: server.metrics()["lorikeet_running_sequences"] == 4, 5, "4 running")
        beside = seconds_per_token(server)
        assert token_ids(server.generate("beside a slow reader", "a7", max_new_tokens=64)) == expected
        assert server.metrics()["lorikeet_running_sequences"] >= 4, "they ended too early to show anything"
        held = []
        while server.metrics()["lorikeet_running_sequences"] > 0:
            held.append(router.memory_info().rss - before)
            assert time.monotonic() < asked + WRITE_TIMEOUT + 2, "they are not cut"
        assert max(held) < HELD
        for connection in stopped:
            assert b'"generated_text":"' not in until_closed(connection), "it was not cut"
            connection.close()
        back_to_zero(server)
        with ThreadPoolExecutor(4) as pool:  # the same work, for clients that read all of it
            mates = [pool.submit(server.client.post, "/generate", json=talkative(i)) for i in range(4)]
            until(lambda: server.metrics()["lorikeet_running_sequences"] == 4, 5, "4 running")
            ratios.append(beside / seconds_per_token(server))
            assert all(mate.result().status_code == 200 for mate in mates)
        if ratios[-1] <= MATES_SLOWER:
            return
    pytest.fail(f"its mates took {ratios} of the usual time for a token")


def latencies(server: Server) -> list[float]:
    taken = []
    for index in range(200):
        started = time.monotonic()
        server.generate(f"good {index}", f"a{index % 16}", max_new_tokens=4)
        taken.append(time.monotonic() - started)
    return taken


def attack(server: Server, over: threading.Event, ends: list[bytes]) -> None:
    """Rapid resets, over one connection after the other; what the server says at the end of each, where that
    is not lost with the connection.
    """
    resets = rapid_resets(generate_body("reset", "a1", max_new_tokens=100), 500)
    while not over.wait(0.1):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(resets)
            ends.append(until_closed(connection))


def test_k3_idle_connections_and_rapid_resets_do_not_slow_others(server: Server) -> None:
    ratios = []
    for _ in range(ROUNDS):
        usual = p99(latencies(server))
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(IDLE)]
        over, ends = threading.Event(), []
        attacker = threading.Thread(target=attack, args=(server, over, ends))
        attacker.start()
        ratios.append(p99(latencies(server)) / usual)
        over.set()
        attacker.join(30)
        assert any(ENHANCE_YOUR_CALM in end for end in ends), ends
        for connection in idle:
            connection.close()
        back_to_zero(server)
        if ratios[-1] <= OTHERS_SLOWER:
            return
    pytest.fail(f"others took {ratios} of the usual time at p99")


def test_k3_half_requests_are_closed_in_time(server: Server) -> None:
    """A connection that says nothing, headers without an end, a body without an end, a byte now and then."""
    started = time.monotonic()
    silent, headers, body = (socket.create_connection(("127.0.0.1", server.port)) for _ in range(3))
    headers.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\nx-slow: ")
    body.sendall(head("/generate", "content-length: 1000") + b"{")
    with ThreadPoolExecutor(3) as pool:
        closing = [pool.submit(until_closed, connection) for connection in (silent, headers, body)]
        while not all(done.done() for done in closing) and time.monotonic() < started + HEADER_TIMEOUT + 2:
            time.sleep(0.5)
            for connection in (headers, body):
                with contextlib.suppress(OSError):
                    connection.send(b" ")
        assert time.monotonic() - started < HEADER_TIMEOUT + 1
    for connection in (silent, headers, body):
        connection.close()
    back_to_zero(server)


def test_k3_chunk_torture(server: Server) -> None:
    """A body in one-byte chunks is read like any other, within the bound on its size."""
    text = json.dumps(generate_body("chunks", max_new_tokens=3)).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(head("/generate", "transfer-encoding: chunked"))
    connection.sendall(b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in text) + b"0\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    connection.close()
    back_to_zero(server)
