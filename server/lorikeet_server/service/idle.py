"""Work for moments in which no step comes."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor

# Between the steps of a busy stream there is less.
QUIET_SECONDS = 0.05


class IdleMoments:
    """Calls `work` on `executor` again and again once it has been quiet for a while, until that returns False
    or a step comes, which waits for one call at most."""

    def __init__(self, executor: Executor, work: Callable[[], bool]) -> None:
        self._executor, self._work = executor, work
        self._interrupted, self._last = asyncio.Event(), 0.0

    def interrupt(self) -> None:
        """A step has come, or its result has gone. On the event loop, where it wakes nobody who waits for
        quiet: that would be a task and a timer for every step."""
        self._last = time.monotonic()
        self._interrupted.set()

    async def use(self) -> None:
        """Until cancelled. Starts with a quiet moment: nothing has come yet."""
        self._last = time.monotonic()
        while True:
            while (left := self._last + QUIET_SECONDS - time.monotonic()) > 0:
                await asyncio.sleep(left)
            self._interrupted.clear()
            while not self._interrupted.is_set():
                if not await asyncio.wrap_future(self._executor.submit(self._work)):
                    await self._interrupted.wait()
