"""The process: a socket, a health service, a model that loads behind them, and an orderly end."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress

from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2 import HealthCheckResponse
from loguru import logger

from lorikeet_server.config import GroupConfig, ServeConfig
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
EXIT_CONFIG = 64

Stop = Callable[[int], None]


async def serve(config: ServeConfig) -> int:
    """Runs until SIGTERM, SIGINT, the end of the parent process, or a fatal error. Returns the exit code.

    A supervisor may send SIGTERM to all processes of a server at once. The router then finishes what is in
    flight, and this one goes on for as long as it does; a second SIGTERM ends it at once.

    The compute thread may still be inside a step, or waiting for a rank that is gone: end the process without
    joining it. Raises ConfigError if the socket cannot be had.
    """
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    def stop(code: int) -> None:
        if not stopped.done():
            stopped.set_result(code)

    pools = Pools.start(config.threads)

    def fail() -> None:
        loop.call_soon_threadsafe(stop, EXIT_FAILED)

    servicer = ShardServicer(pools, fail, lambda: stop(EXIT_CONFIG))
    tasks: list[asyncio.Task[None]] = []

    async def stop_after_use() -> None:
        while servicer.in_use:
            await asyncio.sleep(USE_CHECK_SECONDS)
        stop(EXIT_STOPPED)

    def terminate() -> None:
        loop.add_signal_handler(signal.SIGTERM, stop, EXIT_STOPPED)
        tasks.append(loop.create_task(stop_after_use()))

    loop.add_signal_handler(signal.SIGINT, stop, EXIT_STOPPED)
    loop.add_signal_handler(signal.SIGTERM, terminate)
    health = health_aio.HealthServicer()
    await _set_health(health, HealthCheckResponse.NOT_SERVING)
    servers = [await listen(config.uds_path, servicer, health)]
    gate = Gate()

    async def load() -> None:
        endpoint = ""
        try:
            if config.group.apart:
                own = await asyncio.to_thread(_own_address, config.group)
                server, endpoint = await listen_apart(own, servicer, gate)
                servers.append(server)
            engine = await loop.run_in_executor(pools.compute, load_engine, config, fail, endpoint)
        except GroupError as error:
            logger.error("{}", error)
            stop(EXIT_FAILED)
        except LorikeetError as error:
            logger.error("{}", error)
            stop(EXIT_CONFIG)
        except Exception:
            logger.exception("loading {} failed", config.model_id)
            stop(EXIT_FAILED)
        else:
            servicer.ready(engine)
            gate.open(engine.token)
            await _set_health(health, HealthCheckResponse.SERVING)

    tasks += [asyncio.create_task(load()), asyncio.create_task(_watch_parent(stop))]
    code = await stopped
    logger.info("stopping")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*(server.stop(GRACE_SECONDS) for server in servers))
    with suppress(FileNotFoundError):
        config.uds_path.unlink()
    return code


async def _set_health(health: health_aio.HealthServicer, status: "HealthCheckResponse.ServingStatus") -> None:
    for service in ("", SERVICE):
        await health.set(service, status)


def _own_address(group: GroupConfig) -> str:
    try:
        return own_address(group.address, group.port)
    except OSError as error:
        raise GroupError(f"--master-addr {group.address} cannot be reached from here ({error})") from error


async def _watch_parent(stop: Stop) -> None:
    """A shard without the launcher that started it has no purpose, and holds memory and a socket."""
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_CHECK_SECONDS)
    logger.warning("the parent process is gone")
    stop(EXIT_FAILED)
