"""The process: a socket, a health service, a model that loads behind them, and an orderly end."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from grpc import aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2 import HealthCheckResponse
from loguru import logger

from lorikeet_server.config import ServeConfig
from lorikeet_server.errors import ConfigError, LorikeetError
from lorikeet_server.pb import shard_pb2_grpc as rpc
from lorikeet_server.service.load import load_engine
from lorikeet_server.service.servicer import ShardServicer
from lorikeet_server.service.threads import Pools
from lorikeet_server.weights import WeightsError

SERVICE = "lorikeet.v1.Shard"
# A step of 100k tokens takes 0.5 MB. Log-probabilities of a long prompt with alternatives are the largest
# result.
MAX_REQUEST_BYTES = 16 << 20
MAX_RESULT_BYTES = 256 << 20
GRACE_SECONDS = 1.0
PARENT_CHECK_SECONDS = 1.0

EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_CONFIG = 64

Stop = Callable[[int], None]


async def serve(config: ServeConfig) -> int:
    """Runs until SIGTERM, SIGINT, the end of the parent process, or a fatal error. Returns the exit code.

    The compute thread may still be inside a step, or waiting for a rank that is gone: end the process without
    joining it. Raises ConfigError if the socket cannot be had.
    """
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    def stop(code: int) -> None:
        if not stopped.done():
            stopped.set_result(code)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, EXIT_STOPPED)
    pools = Pools.start(config.threads)

    def fail() -> None:
        loop.call_soon_threadsafe(stop, EXIT_FAILED)

    servicer = ShardServicer(pools, fail)
    health = health_aio.HealthServicer()
    server = await listen(config.uds_path, servicer, health)

    async def load() -> None:
        try:
            engine = await loop.run_in_executor(pools.compute, load_engine, config)
        except (LorikeetError, WeightsError) as error:
            logger.error("{}", error)
            stop(EXIT_CONFIG)
        except Exception:
            logger.exception("loading {} failed", config.model_id)
            stop(EXIT_FAILED)
        else:
            engine.watch(fail)
            servicer.ready(engine)
            await _set_health(health, HealthCheckResponse.SERVING)

    tasks = [asyncio.create_task(load()), asyncio.create_task(_watch_parent(stop))]
    code = await stopped
    logger.info("stopping")
    for task in tasks:
        task.cancel()
    await server.stop(GRACE_SECONDS)
    with suppress(FileNotFoundError):
        config.uds_path.unlink()
    return code


async def listen(path: Path, servicer: ShardServicer, health: health_aio.HealthServicer) -> aio.Server:
    """Binds the socket, mode 0600. Raises ConfigError if that fails."""
    server = aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ("grpc.max_send_message_length", MAX_RESULT_BYTES),
        ]
    )
    rpc.add_ShardServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    await _set_health(health, HealthCheckResponse.NOT_SERVING)
    previous = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
        await server.start()
    except RuntimeError as error:
        raise ConfigError(f"--uds-path {path}: cannot listen there ({error})") from error
    finally:
        os.umask(previous)
    return server


async def _set_health(health: health_aio.HealthServicer, status: "HealthCheckResponse.ServingStatus") -> None:
    for service in ("", SERVICE):
        await health.set(service, status)


async def _watch_parent(stop: Stop) -> None:
    """A shard without the launcher that started it has no purpose, and holds memory and a socket."""
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_CHECK_SECONDS)
    logger.warning("the parent process is gone")
    stop(EXIT_FAILED)
