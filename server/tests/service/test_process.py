"""The process that the launcher starts: exit codes, signals, the socket, health while loading."""

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from shard_driver import tiny_model, warmup_request

from lorikeet_server.pb import shard_pb2 as pb
from lorikeet_server.pb import shard_pb2_grpc as rpc

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model(path)
    return path


def command(model: Path, directory: Path, *more: str) -> list[str]:
    flags = {
        "--model-path": model,
        "--model-id": "tiny",
        "--uds-path": directory / "socket",
        "--store-dir": directory / "store",
    }
    given = [str(part) for flag in flags.items() for part in flag]
    return [sys.executable, "-m", "lorikeet_server", "serve", *given, *more]


@pytest.fixture
def started(model: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command(model, tmp_path, "--json-output"), stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def wait_serving(directory: Path) -> grpc.Channel:
    channel = grpc.insecure_channel(f"unix:{directory / 'socket'}")
    stub = health_pb2_grpc.HealthStub(channel)
    end = time.monotonic() + 120
    while True:
        try:
            request = health_pb2.HealthCheckRequest(service="lorikeet.v1.Shard")
            if stub.Check(request, wait_for_ready=True, timeout=60).status == SERVING:
                return channel
        except grpc.RpcError:
            pass
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_serves_until_sigterm(started: "subprocess.Popen[str]", tmp_path: Path) -> None:
    stub: Any = rpc.ShardStub(wait_serving(tmp_path))  # type: ignore[no-untyped-call]
    info = stub.Info(pb.InfoRequest())
    assert (info.model_id, info.dtype, info.world_size) == ("tiny", "float32", 1)
    assert len(info.base_digest) == 64
    assert stub.Warmup(warmup_request()).num_blocks > 0
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600
    started.send_signal(signal.SIGTERM)
    _, logs = started.communicate(timeout=10)
    assert started.returncode == 0
    assert not (tmp_path / "socket").exists()
    records = [json.loads(line) for line in logs.splitlines()]
    assert all(record["rank"] == "shard-0" for record in records)
    assert any("loaded tiny as float32" in record["message"] for record in records)


@pytest.mark.slow
def test_sigterm_waits_for_the_router(started: "subprocess.Popen[str]", tmp_path: Path) -> None:
    stub: Any = rpc.ShardStub(wait_serving(tmp_path))  # type: ignore[no-untyped-call]
    stub.Warmup(warmup_request())
    steps: queue.Queue[pb.Step | None] = queue.Queue()
    results = stub.Execute(iter(steps.get, None))
    for number in (1, 2, 3):
        steps.put(pb.Step(id=number))
        assert next(results).id == number
        started.send_signal(signal.SIGTERM) if number == 1 else time.sleep(0.3)
    steps.put(None)
    assert list(results) == []
    assert started.wait(10) == 0


@pytest.mark.slow
def test_ends_with_its_parent(model: Path, tmp_path: Path) -> None:
    start = f"subprocess.Popen({command(model, tmp_path)!r}, stdout=subprocess.DEVNULL)"
    script = f"import subprocess, time; print({start}.pid, flush=True); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    shard = int(parent.stdout.readline())
    try:
        wait_serving(tmp_path)
        parent.kill()
        parent.communicate()
        end = time.monotonic() + 20
        while running(shard):
            assert time.monotonic() < end, "the shard outlived its parent"
            time.sleep(0.1)
    finally:
        if running(shard):
            os.kill(shard, signal.SIGKILL)


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        pytest.param(["--device", "cuda"], {}, "CUDA", marks=pytest.mark.slow),
        (["--adapter-root", "/nowhere"], {}, "--adapter-root /nowhere"),
        ([], {"RANK": "one"}, "RANK='one'"),
        ([], {"WORLD_SIZE": "2"}, "MASTER_PORT"),
        ([], {"WORLD_SIZE": "2", "RANK": "2", "MASTER_PORT": "1"}, "RANK=2 is outside 0..1"),
        ([], {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "1"}, "LOCAL_RANK=1 is outside 0..0"),
        pytest.param(
            ["--model-path", "/nowhere"], {}, "/nowhere", marks=pytest.mark.slow
        ),  # it imports torch
    ],
)
def test_refuses_to_start(
    model: Path, tmp_path: Path, flags: list[str], environment: dict[str, str], message: str
) -> None:
    done = run(command(model, tmp_path, *flags), **environment)
    assert done.returncode == 64
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_lacks_the_other_ranks(model: Path, tmp_path: Path) -> None:
    """The launcher waits for their machines; what ends in another way uses up restarts."""
    place = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_PORT": "1"}
    done = run(command(model, tmp_path), MASTER_ADDR="no-such-machine.invalid", **place)
    assert done.returncode == 75
    assert "--master-addr no-such-machine.invalid cannot be reached" in done.stderr


def test_refuses_a_path_that_exists(model: Path, tmp_path: Path) -> None:
    (tmp_path / "socket").symlink_to("/nowhere")
    done = run(command(model, tmp_path))
    assert done.returncode == 64 and "exists already" in done.stderr
    assert (tmp_path / "socket").is_symlink()


@pytest.mark.slow
def test_doctor(tmp_path: Path) -> None:
    done = run([sys.executable, "-m", "lorikeet_server", "doctor", "--json"])
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert {"python", "torch", "kernels", "cuda", "memory"} <= set(findings)
    assert (done.returncode == 0) == (not any(finding["remedy"] for finding in findings.values()))


def run(arguments: list[str], **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        arguments, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )
