"""A group of ranks on two machines: the answers of one rank, and what happens when a machine is lost."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.in_flight import InFlight, long_bodies, running
from support.machines import TwoMachines
from support.models import write_adapter
from support.server import Server, token_ids, until

ADAPTERS = [None, "a0", "a3", "a15"]


@pytest.fixture(scope="module")
def machines(
    tiny: Path, tiny_adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TwoMachines]:
    """The second machine has the adapters of the first, but for `a14`, which is another."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(tiny_adapters, elsewhere, dirs_exist_ok=True)
    write_adapter(elsewhere / "a14", rank=15, seed=99)
    with TwoMachines(str(tiny), [[tiny_adapters], [elsewhere]], "--dtype", "float32") as machines:
        yield machines


def answer(server: Server, index: int) -> list[dict[str, Any]]:
    adapter = ADAPTERS[index % len(ADAPTERS)]
    return server.generate(f"prompt {index}", adapter, max_new_tokens=24, ignore_eos_token=True)["details"][
        "tokens"
    ]


def test_answers_are_those_of_one_rank(machines: TwoMachines, tiny_server: Server) -> None:
    """Base and adapters in the same batch."""
    assert machines.first.client.get("/info").json()["world_size"] == 2
    with ThreadPoolExecutor(16) as pool:
        expected = list(pool.map(lambda index: answer(tiny_server, index), range(16)))
        given = list(pool.map(lambda index: answer(machines.first, index), range(16)))
    for mine, theirs in zip(given, expected, strict=True):
        assert [token["id"] for token in mine] == [token["id"] for token in theirs]
        assert [token["logprob"] for token in mine] == pytest.approx(
            [token["logprob"] for token in theirs], abs=1e-4
        )


def test_an_adapter_is_fetched_on_both(machines: TwoMachines) -> None:
    machines.first.generate("fetched", "a5")
    entries = [
        sorted(p.name for p in (server.directory / "store").rglob("*") if len(p.name) == 64)
        for server in (machines.first, machines.second)
    ]
    assert entries[0] and entries[0] == entries[1]


def test_an_adapter_that_differs_is_refused(machines: TwoMachines) -> None:
    refused = machines.first.post_generate("which one", "a14")
    assert refused.status_code == 422
    assert "rank 0 has " in refused.text and "rank 1 has " in refused.text, refused.text


@pytest.mark.parametrize("victim", ["second", "first"])
def test_both_come_back_after_a_shard_is_killed(machines: TwoMachines, victim: str) -> None:
    expected = token_ids(machines.first.generate("the same as before", "a3"))
    before = {shard.pid for server in (machines.first, machines.second) for shard in server.shards()}
    requests = InFlight(machines.first, long_bodies(6))
    running(machines.first, 4)
    getattr(machines, victim).shards()[0].kill()
    killed = time.monotonic()
    until(lambda: machines.first.health() == 503, 2, "readiness false", every=0.01)
    assert requests.join(killed, 5) <= {"502", "error event"}
    machines.first.wait_ready(120)
    assert token_ids(machines.first.generate("the same as before", "a3")) == expected
    after = {shard.pid for server in (machines.first, machines.second) for shard in server.shards()}
    assert len(after) == 2 and not after & before


def test_sigterm_leaves_no_process(tiny: Path, tiny_adapters: Path) -> None:
    """Both are told at the same time, and what is in flight is finished."""
    with TwoMachines(str(tiny), [[tiny_adapters]], "--dtype", "float32") as machines:
        servers = machines.first, machines.second
        families = [process for server in servers for process in server.family()]
        assert len(families) == 3
        requests = InFlight(machines.first, long_bodies(4, max_new_tokens=200))
        running(machines.first, 2)
        for server in servers:
            server.process.send_signal(signal.SIGTERM)
        assert requests.join(time.monotonic(), 60) == {"200"}
        assert [server.process.wait(30) for server in servers] == [0, 0]
        _, alive = psutil.wait_procs(families, timeout=5)
        assert not alive, [process.cmdline() for process in alive]
