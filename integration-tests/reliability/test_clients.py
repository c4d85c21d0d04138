"""Clients that leave."""

from __future__ import annotations

import time

import pytest
from support.raw import back_to_zero, raw_request
from support.server import Server, generate_body


@pytest.fixture
def server(tiny_server: Server) -> Server:
    return tiny_server


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
