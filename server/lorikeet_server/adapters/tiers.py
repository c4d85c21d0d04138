"""The host tier: adapters in memory. It obeys; which adapter stays is the router's decision."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from lorikeet_server.adapters.staged import StagedAdapter


class HostTier:
    """Staged adapters by digest. Safe from any thread; an adapter is loaded once, however many ask for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._staged: dict[str, StagedAdapter] = {}
        self._loading: dict[str, Future[StagedAdapter]] = {}

    def get(self, digest: str) -> StagedAdapter | None:
        """The adapter, if it is staged."""
        with self._lock:
            return self._staged.get(digest)

    def get_or_load(self, digest: str, load: Callable[[], StagedAdapter]) -> StagedAdapter:
        """The adapter, loaded by the first caller; others wait for the same adapter or the same error. It is
        not kept if it was dropped while it was loaded."""
        with self._lock:
            if digest in self._staged:
                return self._staged[digest]
            loading = self._loading.get(digest)
            if loading is None:
                mine = self._loading[digest] = Future()
        if loading is not None:
            return loading.result()
        try:
            staged = load()
        except BaseException as error:
            with self._lock:
                self._loaded(digest, mine)
            mine.set_exception(error)
            raise
        with self._lock:
            if self._loaded(digest, mine):
                self._staged[digest] = staged
        mine.set_result(staged)
        return staged

    def drop(self, digest: str) -> None:
        """Forget an adapter, also one that is being loaded. Slots that hold it keep its memory until they are
        emptied."""
        with self._lock:
            self._loading.pop(digest, None)
            self._staged.pop(digest, None)

    def digests(self) -> list[str]:
        """Of all adapters that are staged or being loaded."""
        with self._lock:
            return [*self._staged, *self._loading]

    def _loaded(self, digest: str, loading: Future[StagedAdapter]) -> bool:
        """Whether it is this load that the digest waits for: it was not dropped since."""
        if self._loading.get(digest) is not loading:
            return False
        del self._loading[digest]
        return True

    @property
    def bytes_held(self) -> int:
        """Bytes of all staged adapters."""
        with self._lock:
            return sum(staged.memory_bytes for staged in self._staged.values())

    def __len__(self) -> int:
        with self._lock:
            return len(self._staged)
