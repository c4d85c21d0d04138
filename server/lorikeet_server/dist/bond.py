"""How the ranks of a group learn that it has broken.

A rank that leaves a step out leaves its peers inside a collective, where they would wait for its timeout, and
NCCL does not even notice that a peer has died. So every rank has a second connection to the store where the
group met: who breaks the bond sets a key there, and the others, as soon as they see it or the store is gone,
end too.
"""

import threading
from collections.abc import Callable

from loguru import logger
from torch._C._distributed_c10d import TCPStore

KEY = "lorikeet/broken"
PERIOD_SECONDS = 0.25  # between looks


class Bond:
    """One rank's end."""

    def __init__(self, rank: int, connect: Callable[[], TCPStore]) -> None:
        """`connect` opens a connection of its own: one serves a single thread."""
        self._rank, self._connect = rank, connect
        self._store = connect()
        self._severed = threading.Event()

    def sever(self) -> None:
        """Tells the others that this rank will take part in no more collectives. Never raises: the store may
        be gone already."""
        self._severed.set()
        try:
            self._store.set(KEY, str(self._rank))
        except RuntimeError as error:
            logger.debug("the group's store is gone: {}", error)

    def watch(self, broken: Callable[[], object]) -> None:
        """Calls `broken`, on a thread of its own, once another rank has severed the bond or rank 0 is gone.
        Not once this rank has severed it, since then it is the one that leaves.

        The thread looks again and again, and is no daemon: one that comes back from the store while the
        interpreter ends, as a daemon that waits there may, would abort the process.
        """
        store, main = self._connect(), threading.main_thread()

        def watch() -> None:
            while main.is_alive() and not self._severed.wait(PERIOD_SECONDS):
                try:
                    if not store.check([KEY]):
                        continue
                    leaver = store.get(KEY).decode()
                except RuntimeError:
                    leaver = "0"  # which holds the store
                if not self._severed.is_set():
                    logger.error("rank {} has left the group; this shard stops", leaver)
                    broken()
                return

        threading.Thread(target=watch, name="bond").start()
