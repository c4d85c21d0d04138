"""How the ranks of a group learn that it has broken.

A rank that leaves a step out leaves its peers inside a collective, where they would wait for its timeout, and
NCCL does not even notice that a peer has died. So every rank has a second connection to the store where the
group met: who breaks the bond sets a key there, and the others, as soon as they see it or the store is gone,
end too.
"""

import threading
from collections.abc import Callable
from datetime import timedelta

from loguru import logger
from torch._C._distributed_c10d import TCPStore
from torch.distributed import DistStoreError

KEY = "lorikeet/broken"
PATIENCE = timedelta(hours=1)  # of one wait; then the next begins


class Bond:
    """One rank's end."""

    def __init__(self, rank: int, connect: Callable[[], TCPStore]) -> None:
        """`connect` opens a connection of its own: a wait occupies the one it is made on."""
        self._rank, self._connect = rank, connect
        self._store = connect()

    def sever(self) -> None:
        """Tells the others that this rank will take part in no more collectives. Never raises: the store may
        be gone already."""
        try:
            self._store.set(KEY, str(self._rank))
        except RuntimeError as error:
            logger.debug("the group's store is gone: {}", error)

    def watch(self, broken: Callable[[], object]) -> None:
        """Calls `broken`, on a thread of its own, once another rank has severed the bond or rank 0 is gone."""
        store = self._connect()

        def wait() -> None:
            while True:
                try:
                    store.wait([KEY], PATIENCE)
                except DistStoreError:
                    continue
                except RuntimeError:
                    logger.error("rank 0 is gone; this shard stops")
                else:
                    if store.get(KEY) == str(self._rank).encode():
                        return
                    logger.error("rank {} has left the group; this shard stops", store.get(KEY).decode())
                broken()
                return

        threading.Thread(target=wait, name="bond", daemon=True).start()
