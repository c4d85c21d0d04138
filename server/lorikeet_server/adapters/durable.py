"""Directories that appear whole or not at all, and survive a power cut once they have appeared."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold a lock on a directory. Raises `BlockingIOError` if another process does."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def create_file(path: str, size: int) -> int:
    """A new file with room for `size` bytes, for writing. Raises `OSError` if there is no room."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if size > 0:
            os.posix_fallocate(fd, 0, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def publish(path: str, name: str) -> None:
    """Rename the directory `path`, whose files are synced, to `name`. If there is a `name`, it stays."""
    _sync(path)
    try:
        os.rename(path, name)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    _sync(os.path.dirname(name))


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
