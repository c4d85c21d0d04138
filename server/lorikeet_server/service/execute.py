"""The Execute stream: steps in, results out, in order, one stream at a time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import TypeVar

from loguru import logger

from lorikeet_server.engine.engine import Engine
from lorikeet_server.errors import DeviceError, LorikeetError
from lorikeet_server.pb import shard_pb2 as pb
from lorikeet_server.service.idle import IdleMoments
from lorikeet_server.service.threads import Pools

T = TypeVar("T")

# The router keeps two steps in flight. Reading a little ahead hides the event loop's latency; reading on
# without bound would let a broken peer fill the memory.
STEPS_AHEAD = 4


# A step whose result is there, or whose result another thread waits for.
Launched = pb.StepResult | Future[pb.StepResult]


class SupersededError(Exception):
    """A newer stream was opened, or Warmup was called."""


class Session:
    """One open Execute stream. The flags are also read by the compute thread."""

    def __init__(self) -> None:
        self.superseded = False
        self.failed = False  # a step was refused: those behind it must not run
        self.unanswered = 0  # steps that were read and whose results have not been taken
        self.permits = asyncio.Semaphore(STEPS_AHEAD)
        # Bounded by the permits. None: no more steps, or ended.
        self.results: asyncio.Queue[Future[Launched] | None] = asyncio.Queue()

    def end(self) -> None:
        """Steps that have not started will not run. The one that runs is finished, and its result dropped."""
        self.superseded = True
        self.results.put_nowait(None)

    async def next_result(self) -> pb.StepResult | None:
        """The next step's result, None after the last. Raises SupersededError, and what the step raised."""
        result: pb.StepResult | None = None
        step = await self.results.get()
        if step is not None and not self.superseded:
            launched = await asyncio.wrap_future(step)
            result = launched if isinstance(launched, pb.StepResult) else await asyncio.wrap_future(launched)
            self.unanswered -= 1
        if self.superseded:
            raise SupersededError
        return result


class StepStreams:
    """Feeds the compute thread from the newest stream. `fatal` is called, on the thread where it happened,
    when the engine has failed in a way that leaves its state in doubt."""

    def __init__(self, engine: Engine, pools: Pools, fatal: Callable[[], object]) -> None:
        self._engine, self._compute, self._results, self._fatal = engine, pools.compute, pools.results, fatal
        self._session: Session | None = None
        self._idle = IdleMoments(pools.compute, engine.take_ahead)

    @property
    def open(self) -> bool:
        """Whether there is one."""
        return self._session is not None

    def end_current(self) -> None:
        """Ends the open stream, if there is one."""
        if self._session is not None:
            self._end(self._session)

    async def run(self, steps: AsyncIterator[pb.Step]) -> AsyncIterator[pb.StepResult]:
        """Yields the result of each step. Raises SupersededError, and what the engine raises."""
        self.end_current()
        session = self._session = Session()
        reader: asyncio.Task[None] | None = None
        idle = asyncio.create_task(self._idle.use())
        try:
            # Queued behind the step that may still run for the old stream.
            await asyncio.wrap_future(self._compute.submit(self._engine.reset))
            reader = asyncio.create_task(self._read(steps, session))
            while (result := await session.next_result()) is not None:
                self._idle.interrupt()
                yield result
                session.permits.release()
            await reader  # raises what reading raised
        finally:
            idle.cancel()
            if reader is not None:
                reader.cancel()
            self._end(session)

    def _end(self, session: Session) -> None:
        """Of the steps that are left, each rank skips those that it has not begun. If it is inside one that
        another has skipped, it waits there, or takes for it what that one sends for the next stream's."""
        torn = session.unanswered > 0 and not session.superseded and not session.failed
        session.end()
        if self._session is session:
            self._session = None
        if torn and self._engine.abandon():
            logger.error("the stream ended amid steps, which not all ranks may compute; this shard stops")
            self._fatal()

    async def _read(self, steps: AsyncIterator[pb.Step], session: Session) -> None:
        try:
            async for step in steps:
                self._idle.interrupt()
                await session.permits.acquire()
                future = self._compute.submit(self._execute, step, session)
                session.unanswered += 1
                session.results.put_nowait(future)
        finally:
            session.results.put_nowait(None)

    def _execute(self, step: pb.Step, session: Session) -> Launched:
        """Calls for a step. A device that works by itself is not waited for: the next step can be called for
        while this one runs, and its result is read on another thread."""
        # Checked here and not where steps are read: a step of an ended stream must not run after the reset
        # that opened the next one.
        if session.superseded or session.failed:
            raise SupersededError
        pending = self._guarded(lambda: self._engine.launch(step), step.id, session)
        if pending.done is None:
            return self._guarded(pending.wait, step.id, session)
        return self._results.submit(self._guarded, pending.wait, step.id, session)

    def _guarded(self, work: Callable[[], T], step: int, session: Session) -> T:
        try:
            return work()
        except DeviceError as error:
            session.failed = True
            logger.error("step {}: {}; this shard stops", step, error)
            self._stop()
            raise
        except LorikeetError as error:
            session.failed = True
            logger.error("step {} is refused, the stream ends: {}", step, error)
            if self._engine.abandon():
                self._fatal()  # its peers have computed the step: the ranks differ from here on
            raise
        except Exception:
            session.failed = True
            logger.exception("step {} failed beyond its rows, this shard stops", step)
            self._stop()
            raise

    def _stop(self) -> None:
        self._engine.abandon()
        self._fatal()
