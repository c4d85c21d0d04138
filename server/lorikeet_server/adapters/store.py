"""Adapters on disk, named by the digest of their bytes, within a budget.

    STORE/<digest>/adapter_config.json, adapter_model.safetensors     complete, never written to again
    STORE/.new-<random>/                                              being copied, locked by its writer
    STORE/.old-<random>/                                              being removed

An entry appears and disappears by a rename, so whoever can see one sees all of it; several processes may
share a store. Rank 0 adds and evicts; the others only read.
"""

import contextlib
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lorikeet_server.adapters.config import CONFIG_FILE
from lorikeet_server.adapters.durable import locked, publish
from lorikeet_server.adapters.entry import StoredAdapter, checked_digest, is_digest
from lorikeet_server.adapters.load import WEIGHTS_FILE
from lorikeet_server.errors import NoRoomError, TooLargeError

_NEW, _OLD = ".new-", ".old-"
_SPARE = 16 << 10  # bytes of the disk: an entry's directory, and the ends of its files' last blocks


@dataclass(frozen=True, slots=True)
class NewEntry:
    """A directory to copy an adapter into; `publish` makes it the entry of a digest."""

    path: str
    publish: Callable[[str], None]


class Store:
    """The entries of one directory, oldest use first. `disk_bytes` bounds their sum; 0: the disk does."""

    def __init__(self, directory: str, disk_bytes: int) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.directory, self._budget = directory, disk_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, int] = OrderedDict()
        self._pins: dict[str, int] = {}
        self._reserved = 0
        self._recover()

    @property
    def used_bytes(self) -> int:
        """Bytes of complete entries and of copies under way."""
        with self._lock:
            return sum(self._entries.values()) + self._reserved

    def open(self, digest: str) -> StoredAdapter:
        """An entry, for reading. Raises `NotFoundError`, `DataLossError`."""
        stored = StoredAdapter(self.directory, digest)
        with self._lock, contextlib.suppress(OSError):
            self._use(digest)
        return stored

    @contextlib.contextmanager
    def pinned(self, digest: str) -> Iterator[None]:
        """Within, the entry is not evicted."""
        with self._lock:
            self._pins[digest] = self._pins.get(digest, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._pins[digest] -= 1
                if self._pins[digest] == 0:
                    del self._pins[digest]

    def remove(self, digest: str) -> None:
        """Delete an entry, pinned or not; one that is not there is no error. Open readers can read on."""
        with self._lock:
            self._remove(checked_digest(digest))

    @contextlib.contextmanager
    def new_entry(self, size: int) -> Iterator[NewEntry]:
        """Room for `size` bytes, taken from the oldest entries; gone after the block unless published.

        Raises `TooLargeError` if the store cannot hold the bytes, `NoRoomError` if it cannot hold them beside
        entries in use.
        """
        with self._lock:
            self._make_room(size)
            self._reserved += size
        path = os.path.join(self.directory, _NEW + secrets.token_hex(8))
        try:
            os.mkdir(path, mode=0o700)
            with locked(path):
                yield NewEntry(path, lambda digest: self._publish(path, digest))
        finally:
            with self._lock:
                self._reserved -= size
            shutil.rmtree(path, ignore_errors=True)

    def _publish(self, path: str, digest: str) -> None:
        with self._lock:
            # If another writer was first, its entry stays: it has the same bytes.
            publish(path, os.path.join(self.directory, digest))
            self._use(digest)

    def _use(self, digest: str) -> None:
        path = os.path.join(self.directory, digest)
        os.utime(path)  # the order of use, for the next start
        if digest not in self._entries:
            self._entries[digest] = _size(path)
        self._entries.move_to_end(digest)

    def _make_room(self, size: int) -> None:
        if self._budget and size > self._budget:
            raise TooLargeError(
                f"the adapter has {size} bytes and the store holds {self._budget} (--adapter-disk-bytes)"
            )
        # What a disk has free changes with what others write, so it is asked each time. Some do not tell.
        disk = shutil.disk_usage(self.directory)
        over = size + _SPARE - disk.free if disk.total else 0
        if self._budget:
            over = max(over, sum(self._entries.values()) + self._reserved + size - self._budget)
        going = []
        for digest, held in self._entries.items():
            if over <= 0:
                break
            if digest not in self._pins:
                going.append(digest)
                over -= held
        if over > 0:
            raise NoRoomError(
                f"the adapter has {size} bytes, {over} more than the store has room for beside those being "
                "read (--adapter-disk-bytes, and what the disk of --store-dir has free)"
            )
        for digest in going:
            self._remove(digest)

    def _remove(self, digest: str) -> None:
        self._entries.pop(digest, None)
        aside = os.path.join(self.directory, _OLD + secrets.token_hex(8))
        with contextlib.suppress(FileNotFoundError):
            os.rename(os.path.join(self.directory, digest), aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _recover(self) -> None:
        """Take stock; delete what writers left behind when they died, which is what nobody has locked."""
        found: list[tuple[float, str, int]] = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name.startswith((_NEW, _OLD)):
                    with contextlib.suppress(OSError), locked(entry.path):
                        shutil.rmtree(entry.path, ignore_errors=True)
                elif is_digest(entry.name) and entry.is_dir(follow_symlinks=False):
                    try:
                        found.append((entry.stat().st_mtime, entry.name, _size(entry.path)))
                    except FileNotFoundError:  # a file is missing: nothing that `open` could use
                        shutil.rmtree(entry.path, ignore_errors=True)
        self._entries.update((name, size) for _, name, size in sorted(found))


def _size(path: str) -> int:
    return sum(os.path.getsize(os.path.join(path, name)) for name in (CONFIG_FILE, WEIGHTS_FILE))
