"""Clients below HTTP, which leave, stop, dawdle or flood, and the gauges of what is held for them."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time

from support.server import Server, until

GAUGES = (
    "lorikeet_running_sequences",
    "lorikeet_queued_requests",
    "lorikeet_kv_blocks_used",
    "lorikeet_adapters_pinned",
    "lorikeet_adapters_host_pinned",
    "lorikeet_adapter_flights",
    "lorikeet_queued_tokens",
)


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


def until_closed(connection: socket.socket, seconds: float = 30) -> bytes:
    """What is still received, until the server closes the connection."""
    received = b""
    connection.settimeout(seconds)
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(1 << 16):
            received += data
    return received


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def rapid_resets(body: dict[str, object], count: int) -> bytes:
    """HTTP/2 from its first byte on: `count` requests for a stream, each taken back as soon as it is sent
    (CVE-2023-44487).
    """
    text = json.dumps(body).encode()
    # HPACK with entries of the static table: POST, http, then :path, :authority and content-type as literals.
    literals = ((0x44, b"/generate_stream"), (0x41, b"x"), (0x5F, b"application/json"))
    headers = b"\x83\x86" + b"".join(bytes((entry, len(text))) + text for entry, text in literals)
    requests = (
        _frame(1, 4, stream, headers) + _frame(0, 1, stream, text) + _frame(3, 0, stream, b"\0\0\0\x08")
        for stream in range(1, 2 * count, 2)
    )
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0) + b"".join(requests)
