"""Adapters on disk, named by the digest of their bytes, within a budget.

    STORE/<digest>/adapter_config.json, adapter_model.safetensors     complete, never written to again
    STORE/.new-<random>/                                               being copied, locked by its writer
    STORE/.old-<random>/                                               being removed

An entry appears and disappears by a rename, so whoever can see one sees all of it; several processes may share a store.
Rank 0 adds and evicts; the others only read.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator

from lorikeet_server.adapters.config import CONFIG_FILE
from lorikeet_server.adapters.entry import StoredAdapter, checked_digest, is_digest
from lorikeet_server.adapters.load import WEIGHTS_FILE
from lorikeet_server.errors import TooLargeError

_NEW, _OLD = ".new-", ".old-"


class Store:
    """The entries of one directory, oldest use first. `disk_bytes` bounds their sum; 0: no bound."""

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
        self._touch(digest)
        return stored

    @contextlib.contextmanager
    def pinned(self, digest: str) -> Iterator[None]:
        """Within, the entry is not evicted."""
        self.pin(digest)
        try:
            yield
        finally:
            self.unpin(digest)

    def pin(self, digest: str) -> None:
        """Keep the entry until `unpin` was called as often."""
        with self._lock:
            self._pins[digest] = self._pins.get(digest, 0) + 1

    def unpin(self, digest: str) -> None:
        """Undo one `pin`."""
        with self._lock:
            left = self._pins[digest] - 1
            self._pins[digest] = left
            if left == 0:
                del self._pins[digest]

    def remove(self, digest: str) -> None:
        """Delete an entry, pinned or not; one that is not there is not an error. Open readers can read on."""
        with self._lock:
            self._remove(checked_digest(digest))

    @contextlib.contextmanager
    def new_entry(self, size: int) -> Iterator["NewEntry"]:
        """A directory to copy `size` bytes into; gone after the block unless it was published.

        Raises `TooLargeError` if the bytes do not fit beside entries in use.
        """
        with self._lock:
            self._make_room(size)
            self._reserved += size
        path = os.path.join(self.directory, _NEW + secrets.token_hex(8))
        try:
            os.mkdir(path, mode=0o700)
            with _locked(path):
                yield NewEntry(self, path, size)
        finally:
            with self._lock:
                self._reserved -= size
            shutil.rmtree(path, ignore_errors=True)

    def _publish(self, path: str, digest: str, size: int) -> None:
        """Give a complete directory its name. If another writer was first, its entry stays: it has the same bytes."""
        with self._lock:
            entry = os.path.join(self.directory, digest)
            with contextlib.suppress(FileExistsError):
                _rename(path, entry)
            os.utime(entry)
            _sync_directory(self.directory)
            self._entries[digest] = size
            self._entries.move_to_end(digest)

    def _touch(self, digest: str) -> None:
        with self._lock, contextlib.suppress(OSError):
            path = os.path.join(self.directory, digest)
            os.utime(path)
            self._entries[digest] = self._entries.get(digest) or _size(path)
            self._entries.move_to_end(digest)

    def _make_room(self, size: int) -> None:
        if not self._budget:
            return
        if size > self._budget:
            raise TooLargeError(f"the adapter has {size} bytes and the store holds {self._budget} (--disk-bytes)")
        over = sum(self._entries.values()) + self._reserved + size - self._budget
        for digest, held in list(self._entries.items()):
            if over <= 0:
                return
            if digest not in self._pins:
                self._remove(digest)
                over -= held
        if over > 0:
            raise TooLargeError(
                f"the adapter has {size} bytes, {over} more than the store has room for beside adapters in use "
                "(--disk-bytes)"
            )

    def _remove(self, digest: str) -> None:
        self._entries.pop(digest, None)
        aside = os.path.join(self.directory, _OLD + secrets.token_hex(8))
        with contextlib.suppress(FileNotFoundError):
            os.rename(os.path.join(self.directory, digest), aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _recover(self) -> None:
        """Take stock; delete what a writer left behind when it died, which is what nobody holds a lock on."""
        found: list[tuple[float, str, int]] = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name.startswith((_NEW, _OLD)):
                    with contextlib.suppress(OSError), _locked(entry.path):
                        shutil.rmtree(entry.path, ignore_errors=True)
                elif is_digest(entry.name) and entry.is_dir(follow_symlinks=False):
                    try:
                        found.append((entry.stat().st_mtime, entry.name, _size(entry.path)))
                    except FileNotFoundError:  # a file is missing: nothing that `open` could use
                        shutil.rmtree(entry.path, ignore_errors=True)
        self._entries.update((name, size) for _, name, size in sorted(found))


class NewEntry:
    """A directory under construction."""

    def __init__(self, store: Store, path: str, size: int) -> None:
        self._store, self._size, self.path = store, size, path

    def create(self, name: str, size: int) -> int:
        """A new file with room for `size` bytes, for writing. Raises `OSError` (ENOSPC) if there is no room."""
        fd = os.open(os.path.join(self.path, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def publish(self, digest: str) -> None:
        """Make the directory the entry `digest`. Its files have been written and synced."""
        _sync_directory(self.path)
        self._store._publish(self.path, digest, self._size)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold a lock on a directory while it is being written. Raises `BlockingIOError` if another process does."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _rename(old: str, new: str) -> None:
    try:
        os.rename(old, new)
    except OSError as error:
        if os.path.isdir(new):
            raise FileExistsError(new) from error
        raise


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _size(path: str) -> int:
    return sum(os.path.getsize(os.path.join(path, name)) for name in (CONFIG_FILE, WEIGHTS_FILE))
