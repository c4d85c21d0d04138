"""The process: a socket, a health service, a model that loads behind them, and an orderly end."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from grpc import aio
from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2 import HealthCheckResponse
from loguru import logger

from lorikeet_server.config import EXIT_ALONE, EXIT_CONFIG, GroupConfig, ServeConfig
from lorikeet_server.dist import own_address
from lorikeet_server.errors import GroupError, LorikeetError
from lorikeet_server.service.listen import Gate, listen, listen_apart
from lorikeet_server.service.load import load_engine
from lorikeet_server.service.servicer import ShardServicer
from lorikeet_server.service.threads import Pools

SERVICE = "lorikeet.v1.Shard"
GRACE_SECONDS = 1.0
PARENT_CHECK_SECONDS = 1.0
USE_CHECK_SECONDS = 0.1

EXIT_STOPPED = 0
EXIT_FAILED = 1


async def serve(config: ServeConfig) -> int:
    """Runs until SIGTERM, SIGINT, the end of the parent process, or a fatal error. Returns the exit code.

    The compute thread may still be inside a step, or waiting for a rank that is gone: end the process without
    joining it. Raises ConfigError if the socket cannot be had.
    """
    return await Process(config).run()


class Process:
    """This process, on its event loop."""

    def __init__(self, config: ServeConfig) -> None:
        self._config, self._loop = config, asyncio.get_running_loop()
        self._code: asyncio.Future[int] = self._loop.create_future()
        self._pools = Pools.start(config.threads)
        fail, refuse = partial(self._end, EXIT_FAILED), partial(self._end, EXIT_CONFIG)
        self._servicer = ShardServicer(self._pools, fail, refuse)
        self._health, self._gate = health_aio.HealthServicer(), Gate()
        self._servers: list[aio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        """To the end; see `serve`."""
        self._loop.add_signal_handler(signal.SIGINT, self._stop, EXIT_STOPPED)
        self._loop.add_signal_handler(signal.SIGTERM, self._terminate)
        await self._set_health(HealthCheckResponse.NOT_SERVING)
        self._servers.append(await listen(self._config.uds_path, self._servicer, self._health))
        self._start(self._load())
        self._start(self._watch_parent())
        code = await self._code
        logger.info("stopping")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(server.stop(GRACE_SECONDS) for server in self._servers))
        with suppress(FileNotFoundError):
            self._config.uds_path.unlink()
        return code

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._loop.create_task(work))

    def _stop(self, code: int) -> None:
        if not self._code.done():
            self._code.set_result(code)

    def _end(self, code: int) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._stop, code)

    def _terminate(self) -> None:
        """A supervisor may send SIGTERM to all processes of a server at once. The router then finishes what
        is in flight, and this one goes on for as long as it does; a second SIGTERM ends it at once."""
        self._loop.add_signal_handler(signal.SIGTERM, self._stop, EXIT_STOPPED)
        self._start(self._stop_after_use())

    async def _stop_after_use(self) -> None:
        while self._servicer.in_use:
            await asyncio.sleep(USE_CHECK_SECONDS)
        self._stop(EXIT_STOPPED)

    async def _load(self) -> None:
        """Loads the model, then lets callers in."""
        config, endpoint = self._config, ""
        try:
            if config.group.apart:
                own = await asyncio.to_thread(_own_address, config.group)
                server, endpoint = await listen_apart(own, self._servicer, self._gate)
                self._servers.append(server)
            load = partial(load_engine, config, partial(self._end, EXIT_ALONE), endpoint)
            engine = await self._loop.run_in_executor(self._pools.compute, load)
        except GroupError as error:
            logger.error("{}", error)
            self._stop(EXIT_ALONE)
        except LorikeetError as error:
            logger.error("{}", error)
            self._stop(EXIT_CONFIG)
        except Exception:
            logger.exception("loading {} failed", config.model_id)
            self._stop(EXIT_FAILED)
        else:
            self._servicer.ready(engine)
            self._gate.open(engine.token)
            await self._set_health(HealthCheckResponse.SERVING)

    async def _set_health(self, status: "HealthCheckResponse.ServingStatus") -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)

    async def _watch_parent(self) -> None:
        """A shard without the launcher that started it has no purpose, and holds memory and a socket."""
        parent = os.getppid()
        while os.getppid() == parent:
            await asyncio.sleep(PARENT_CHECK_SECONDS)
        logger.warning("the parent process is gone")
        self._stop(EXIT_FAILED)


def _own_address(group: GroupConfig) -> str:
    try:
        return own_address(group.address, group.port)
    except OSError as error:
        raise GroupError(f"--master-addr {group.address} cannot be reached from here ({error})") from error
