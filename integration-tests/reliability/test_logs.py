"""A log whose reader has stopped reading: a stalled pipe must not stop the server, nor its end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.server import Server, until

BATCH = 500
REQUEST = f"GET /nowhere HTTP/1.1\r\nhost: x\r\nx-request-id: {'x' * 128}\r\n\r\n".encode()


class Unread(Server):
    """A server that logs into a pipe."""

    def __post_init__(self) -> None:
        super().__post_init__()
        os.mkfifo(self.log_path)
        self.reader = os.open(self.log_path, os.O_RDONLY | os.O_NONBLOCK)

    def log(self) -> str:
        """What is in the pipe, for a test that fails."""
        return os.read(self.reader, 1 << 16).decode(errors="replace")

    def read_log(self) -> list[str]:
        """A list that a thread fills with the lines of the log, until the server ends."""
        os.set_blocking(self.reader, True)
        lines: list[str] = []

        def read() -> None:
            with os.fdopen(self.reader, errors="replace") as log:
                for line in log:
                    lines.append(line)

        threading.Thread(target=read).start()
        return lines


@pytest.fixture
def server(tiny: Path) -> Iterator[Unread]:
    with Unread(str(tiny), (), ["--dtype", "float32"]) as server:
        yield server


def answered(server: Server, batches: int) -> int:
    """The number of 404s to so many batches of requests over one connection."""
    count = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        replies = connection.makefile("rb")
        for _ in range(batches):
            connection.sendall(REQUEST * BATCH)
            for _ in range(BATCH):
                count += replies.readline().startswith(b"HTTP/1.1 404")
                length = 0
                while (line := replies.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                replies.read(length)
    return count


@pytest.mark.parametrize("reader_returns", [False, True])
def test_a_log_that_nobody_reads_holds_nothing_up(server: Unread, reader_returns: bool) -> None:
    batches = 0
    while server.metrics()["lorikeet_log_records_lost_total"] == 0:
        batches += 10
        assert batches <= 100, "much more than a pipe and the router hold"
        assert answered(server, 10) == 10 * BATCH
    assert answered(server, 4) == 4 * BATCH
    assert server.generate("beside a stalled log")["details"]["generated_tokens"] > 0

    family = server.family()
    lines = server.read_log() if reader_returns else []
    if reader_returns:
        until(lambda: any("log records are missing here" in line for line in lines), 20, "the warning")
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert not psutil.wait_procs(family, timeout=5)[1]
    if reader_returns:
        until(lambda: any("ended in order" in line for line in lines), 5, "the last line")
