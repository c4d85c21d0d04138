"""The Shard service: decode, call, encode, and map errors to status codes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Executor
from contextlib import aclosing
from typing import NoReturn, TypeVar, cast

import grpc
from grpc import aio
from loguru import logger

from lorikeet_server.adapters.intake import FetchProgress
from lorikeet_server.engine.engine import Engine
from lorikeet_server.errors import ConfigError, DeviceError, LorikeetError, ModelError, NotReadyError
from lorikeet_server.pb import shard_pb2 as pb
from lorikeet_server.pb import shard_pb2_grpc as rpc
from lorikeet_server.service.execute import StepStreams, SupersededError
from lorikeet_server.service.status import status_of
from lorikeet_server.service.threads import Pools

T = TypeVar("T")


class ShardServicer(rpc.ShardServicer):
    """Answers UNAVAILABLE until `ready` is called with the loaded engine. `fatal` and `refuse` end the
    process, from any thread: it has failed, or cannot use the model or the settings that it was given."""

    def __init__(self, pools: Pools, fatal: Callable[[], object], refuse: Callable[[], object]) -> None:
        self._pools, self._fatal, self._refuse = pools, fatal, refuse
        self._engine: Engine | None = None
        self._streams: StepStreams | None = None

    def ready(self, engine: Engine) -> None:
        """The model is loaded."""
        self._engine, self._streams = engine, StepStreams(engine, self._pools, self._fatal)

    @property
    def in_use(self) -> bool:
        """Whether a router has its stream of steps open."""
        return self._streams is not None and self._streams.open

    async def Info(self, request: pb.InfoRequest, context: aio.ServicerContext) -> pb.InfoResponse:  # noqa: N802
        engine, _ = await self._loaded(context)
        return engine.info()

    async def Warmup(self, request: pb.WarmupRequest, context: aio.ServicerContext) -> pb.WarmupResponse:  # noqa: N802
        engine, streams = await self._loaded(context)
        streams.end_current()

        def warm() -> pb.WarmupResponse:
            try:
                engine.library.unstage()  # a router that calls this knows of no staged adapter
                return engine.warmup(request)
            except Exception as error:
                # A router asks for the same again until it is given: in vain, for ever, and without a word.
                if isinstance(error, LorikeetError):
                    logger.error("the model cannot be served: {}", error)
                end = self._refuse if isinstance(error, (ConfigError, ModelError)) else self._fatal
                end()
                raise

        return await self._call(context, self._pools.compute, warm)

    async def Execute(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.Step], context: aio.ServicerContext
    ) -> AsyncIterator[pb.StepResult]:
        _, streams = await self._loaded(context)
        try:
            async with aclosing(streams.run(request_iterator)) as results:  # type: ignore[type-var]
                async for result in results:
                    yield result
        except SupersededError:
            await context.abort(grpc.StatusCode.ABORTED, "another Execute stream or a Warmup took over")
        except Exception as error:
            await _abort(context, error)

    async def FetchAdapter(  # noqa: N802
        self, request: pb.FetchAdapterRequest, context: aio.ServicerContext
    ) -> AsyncIterator[pb.FetchAdapterProgress]:
        engine, _ = await self._loaded(context)
        fetch = engine.library.fetch(request.source, request.id, request.max_bytes)
        copying = cast(Generator[FetchProgress, None, None], fetch)
        try:
            while (
                done := await self._call(context, self._pools.fetching, lambda: next(copying, None))
            ) is not None:
                yield pb.FetchAdapterProgress(
                    bytes_done=done.bytes_done,
                    bytes_total=done.bytes_total,
                    digest=done.digest,
                    stored_bytes=done.bytes_total if done.digest else 0,
                )
        finally:
            # Also when the caller has gone: closing takes back what was copied.
            self._pools.fetching.submit(copying.close)

    async def StageAdapter(  # noqa: N802
        self, request: pb.StageAdapterRequest, context: aio.ServicerContext
    ) -> pb.StageAdapterResponse:
        engine, _ = await self._loaded(context)
        staged = await self._call(context, self._pools.staging, lambda: engine.library.stage(request.digest))
        return pb.StageAdapterResponse(
            host_bytes=staged.host_bytes,
            device_bytes=staged.memory_bytes,
            max_rank=staged.max_rank,
        )

    async def DropAdapter(  # noqa: N802
        self, request: pb.DropAdapterRequest, context: aio.ServicerContext
    ) -> pb.DropAdapterResponse:
        engine, _ = await self._loaded(context)
        await self._call(
            context, self._pools.dropping, lambda: engine.library.drop(request.digest, request.from_store)
        )
        return pb.DropAdapterResponse()

    async def _loaded(self, context: aio.ServicerContext) -> tuple[Engine, StepStreams]:
        if self._engine is None or self._streams is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the model is still loading")
            raise NotReadyError("unreachable: abort raises")
        return self._engine, self._streams

    async def _call(self, context: aio.ServicerContext, executor: Executor, function: Callable[[], T]) -> T:
        """Runs a blocking call off the event loop, and turns what it raises into a status."""
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, function)
        except Exception as error:
            if isinstance(error, DeviceError):
                self._fatal()
            await _abort(context, error)


async def _abort(context: aio.ServicerContext, error: Exception) -> NoReturn:
    if isinstance(error, aio.AbortError):
        raise error
    if not isinstance(error, LorikeetError):
        logger.opt(exception=error).error("unexpected error in a call")
    await context.abort(*status_of(error))
    raise NotReadyError("unreachable: abort raises")
