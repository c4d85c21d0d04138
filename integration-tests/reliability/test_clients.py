"""Rows K1, K2 and K3: clients that leave, read slowly, or never finish their request."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest
from support.server import Server, generate_body, token_ids, until

GAUGES = (
    "lorikeet_running_sequences",
    "lorikeet_queued_requests",
    "lorikeet_kv_blocks_used",
    "lorikeet_adapters_pinned",
    "lorikeet_adapters_host_pinned",
    "lorikeet_adapter_flights",
    "lorikeet_queued_tokens",
)


@pytest.fixture
def server(tiny_server: Server) -> Server:
    return tiny_server


def head(path: str, framing: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{framing}\r\n\r\n".encode()


def raw_request(server: Server, path: str, body: dict[str, object]) -> socket.socket:
    """A connection on which the request has been sent and nothing was read."""
    text = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(head(path, f"content-length: {len(text)}") + text)
    return connection


def back_to_zero(server: Server) -> float:
    """The seconds until every gauge is at zero; 5 are none too few for any machine."""
    started = time.monotonic()

    def zero() -> bool:
        metrics = server.metrics()
        return all(metrics[name] == 0 for name in GAUGES)

    with contextlib.suppress(AssertionError):
        until(zero, 5, "gauges at zero", every=0.002)
    seconds = time.monotonic() - started
    metrics = server.metrics()
    assert {name: metrics[name] for name in GAUGES} == dict.fromkeys(GAUGES, 0)
    return seconds


def step_seconds(before: dict[str, float], after: dict[str, float]) -> float:
    """The mean time of a step between two readings of the metrics."""
    total, count = (
        after[f"lorikeet_step_seconds_{name}"] - before[f"lorikeet_step_seconds_{name}"]
        for name in ("sum", "count")
    )
    return total / count if count else 0.0


@pytest.fixture
def staged(server: Server) -> Server:
    """The server with all adapters in host memory: a load goes on when the one who asked for it leaves."""
    for index in range(16):
        server.generate("stage", f"a{index}", max_new_tokens=1)
    return server


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
@pytest.mark.parametrize("wait", [0.0, 0.01, 0.1, 0.4])
def test_k1_who_leaves_frees_everything(staged: Server, path: str, wait: float) -> None:
    """Whatever they are at: on arrival, in the queue, in a prefill, between two tokens. In three rounds, of
    which another process may spoil the time of two.
    """
    late = []
    for _ in range(3):
        before = staged.metrics()
        connections = [
            raw_request(
                staged,
                path,
                generate_body(f"leave {i} " * 60, f"a{i % 16}", max_new_tokens=2000, ignore_eos_token=True),
            )
            for i in range(40)
        ]
        time.sleep(wait)
        left = staged.metrics()
        assert wait < 0.1 or left["lorikeet_running_sequences"] > 0
        for connection in connections:
            connection.close()
        late.append(back_to_zero(staged) - step_seconds(before, left))
    assert min(late) < 0.1, late


def test_k1_many_short_visits(staged: Server) -> None:
    for index in range(200):
        connection = raw_request(
            staged, "/generate_stream", generate_body(f"visit {index}", f"a{index % 16}", max_new_tokens=500)
        )
        if index % 3 == 0:
            connection.recv(200)
        connection.close()
    back_to_zero(staged)


def test_k2_a_reader_that_stops_harms_only_itself(server: Server) -> None:
    expected = token_ids(server.generate("beside a slow reader", "a7", max_new_tokens=64))
    connections = []
    for index in range(4):
        connection = raw_request(
            server,
            "/generate_stream",
            generate_body(f"slow {index}", "a1", max_new_tokens=3000, ignore_eos_token=True),
        )
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connections.append(connection)
    for connection in connections[:2]:
        assert connection.recv(1)
    assert token_ids(server.generate("beside a slow reader", "a7", max_new_tokens=64)) == expected
    until(
        lambda: server.metrics()["lorikeet_running_sequences"] == 0,
        60,
        "generation not held up by its reader",
    )
    for connection in connections:
        connection.close()
    back_to_zero(server)


def test_k3_half_requests_are_closed_in_time(server: Server) -> None:
    """Headers without an end, a body without an end; meanwhile good requests are served."""
    headers = socket.create_connection(("127.0.0.1", server.port))
    headers.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\nx-slow: ")
    body = socket.create_connection(("127.0.0.1", server.port))
    body.sendall(head("/generate", "content-length: 1000") + b"{")
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    assert server.generate("beside slowloris")["details"]["generated_tokens"] > 0
    started = time.monotonic()
    for connection in (headers, body):
        connection.settimeout(25)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass
    assert time.monotonic() - started < 20
    for connection in (headers, body, *idle):
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
