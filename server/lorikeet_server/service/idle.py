"""Work for moments in which no step comes."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

# Between the steps of a busy stream there is less.
QUIET_SECONDS = 0.05


class IdleMoments:
    """Calls `work` on `executor` again and again once it has been quiet for a while, until that returns False
    or a step comes, which waits for one call at most."""

    def __init__(self, executor: Executor, work: Callable[[], bool]) -> None:
        self._executor, self._work = executor, work
        self._interrupted = asyncio.Event()

    def interrupt(self) -> None:
        """A step has come, or its result has gone. On the event loop."""
        self._interrupted.set()

    async def use(self) -> None:
        """Until cancelled. Starts with a quiet moment: nothing has come yet."""
        while True:
            await self._quiet()
            while not self._interrupted.is_set():
                if not await asyncio.wrap_future(self._executor.submit(self._work)):
                    await self._interrupted.wait()

    async def _quiet(self) -> None:
        while True:
            self._interrupted.clear()
            try:
                await asyncio.wait_for(self._interrupted.wait(), QUIET_SECONDS)
            except TimeoutError:
                return
