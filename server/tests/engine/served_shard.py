"""An engine behind a real Unix socket, with the server in a thread of this process, and a client of it."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1.health import aio as health_aio
from shard_driver import Driver, make_engine, tiny_model
from tiny_adapters import save_adapter

from lorikeet_server.device.base import Device
from lorikeet_server.engine.engine import Engine
from lorikeet_server.pb import shard_pb2 as pb
from lorikeet_server.pb import shard_pb2_grpc as rpc
from lorikeet_server.service.listen import listen
from lorikeet_server.service.servicer import ShardServicer
from lorikeet_server.service.threads import Pools


class Shard:
    """A served engine, and a client of it."""

    def __init__(self, path: Path, device: Device | None = None) -> None:
        self.model = tiny_model(path / "model")
        save_adapter(self.model, path / "adapters" / "one", 1)
        self.engine: Engine = make_engine(
            path / "model", path / "store", "reference", [path / "adapters"], device=device
        )
        self.socket = path / "socket"
        self.fatal, self.refused = threading.Event(), threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.servicer = ShardServicer(Pools.start(1), self.fatal.set, self.refused.set)
        health = health_aio.HealthServicer()
        self.server = self.call(listen(self.socket, self.servicer, health))
        self.channel = grpc.insecure_channel(f"unix:{self.socket}")
        self.stub = rpc.ShardStub(self.channel)  # type: ignore[no-untyped-call]

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def open(self) -> "Stream":
        return Stream(self.stub)

    def close(self) -> None:
        self.channel.close()
        self.call(self.server.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


class Stream:
    """One Execute stream of a client."""

    def __init__(self, stub: Any) -> None:
        self.steps: queue.Queue[pb.Step | None] = queue.Queue()
        self.results = stub.Execute(iter(self.steps.get, None))

    def send(self, step: pb.Step) -> None:
        self.steps.put(step)

    def execute(self, step: pb.Step) -> pb.StepResult:
        self.send(step)
        return next(self.results)


def prefill(slot: int, prompt: list[int], step: pb.Step | None = None) -> pb.Step:
    step = step or pb.Step()
    driver = Driver(None)  # type: ignore[arg-type]
    driver.free = [slot * 10 + i for i in range(10)]
    driver.prefill(step, driver.admit(step, slot, prompt))
    return step


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
