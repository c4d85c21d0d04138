"""Adapters in directories of this machine, below the roots that the operator named.

Two files are opened and nothing else is looked into: no pickle, no code, no tokenizer. Both are opened
before either is read, and `check_unchanged` afterwards tells whether what was read was one version of one
adapter.
"""

import errno
import os
import stat
from collections.abc import Sequence
from types import TracebackType

from lorikeet_server.adapters.config import CONFIG_FILE, MAX_CONFIG_BYTES
from lorikeet_server.adapters.entry import READ_FLAGS
from lorikeet_server.adapters.load import WEIGHTS_FILE
from lorikeet_server.adapters.roots import checked_id, open_below
from lorikeet_server.adapters.strict_json import shown
from lorikeet_server.errors import InvalidAdapterError, NotFoundError, SourceUnavailableError

_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "adapter_model.ckpt")


class SourceAdapter:
    """The two files of an adapter, open. `weights_fd` is at its start."""

    def __init__(self, directory_fd: int, shown_id: str) -> None:
        self._directory, self._id = directory_fd, shown_id
        self._fds: dict[str, int] = {}
        try:
            self._fds = {CONFIG_FILE: self._open(CONFIG_FILE)}
            self._fds[WEIGHTS_FILE] = self._open(WEIGHTS_FILE)
            self._before = {name: _identity(os.fstat(fd)) for name, fd in self._fds.items()}
            self.weights_fd = self._fds[WEIGHTS_FILE]
            self.weights_bytes = os.fstat(self.weights_fd).st_size
            self.config = self._read_config()
        except BaseException:
            self.close()
            raise

    def check_unchanged(self) -> None:
        """Raises `SourceUnavailableError` if either file was written to or replaced since it was opened."""
        for name, fd in self._fds.items():
            try:
                named = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
            except OSError:
                named = None
            if named is None or not _identity(named) == _identity(os.fstat(fd)) == self._before[name]:
                raise SourceUnavailableError(
                    f"{name} of adapter {self._id} changed while it was copied; publish an adapter by "
                    "renaming a complete directory into place"
                )

    def close(self) -> None:
        """Close everything. May be called again."""
        for fd in (*self._fds.values(), self._directory):
            if fd >= 0:
                os.close(fd)
        self._fds, self._directory = {}, -1

    def _open(self, name: str) -> int:
        try:
            self._check_kind(name, os.stat(name, dir_fd=self._directory, follow_symlinks=False))
            fd = os.open(name, READ_FLAGS, dir_fd=self._directory)
        except FileNotFoundError:
            raise self._missing(name) from None
        except OSError as error:
            raise InvalidAdapterError(
                f"{name} of adapter {self._id} cannot be opened: {error.strerror}"
            ) from None
        try:
            self._check_kind(name, os.fstat(fd))  # it may have been swapped since
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check_kind(self, name: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise InvalidAdapterError(
                f"{name} of adapter {self._id} is not a regular file; copy the file itself there"
            )
        if status.st_nlink > 1:
            raise InvalidAdapterError(
                f"{name} of adapter {self._id} has {status.st_nlink} hard links, so it may be a file from "
                "elsewhere; copy it instead (cp --reflink=auto)"
            )

    def _missing(self, name: str) -> InvalidAdapterError:
        for pickle in _PICKLES if name == WEIGHTS_FILE else ():
            if _exists(self._directory, pickle):
                return InvalidAdapterError(
                    f"adapter {self._id} has {pickle} and no {name}; a pickle is never opened, so save the "
                    "adapter with safe_serialization=True"
                )
        return InvalidAdapterError(f"adapter {self._id} has no {name}")

    def _read_config(self) -> bytes:
        fd = self._fds[CONFIG_FILE]
        size = os.fstat(fd).st_size
        if size > MAX_CONFIG_BYTES:
            raise InvalidAdapterError(f"{CONFIG_FILE} has {size} bytes; at most {MAX_CONFIG_BYTES} are read")
        return os.pread(fd, size + 1, 0)

    def __enter__(self) -> "SourceAdapter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


class Peek:
    """Reads from the front of a source's weights without moving its place in the file."""

    def __init__(self, source: SourceAdapter) -> None:
        self._fd, self._at = source.weights_fd, 0
        self.weights_bytes = source.weights_bytes

    def read(self, count: int) -> bytearray:
        """The next `count` bytes; fewer if the file has become shorter."""
        data = bytearray(count)
        del data[os.preadv(self._fd, [data], self._at) :]
        self._at += len(data)
        return data


def open_local(roots: Sequence[str], adapter_id: str) -> SourceAdapter:
    """The adapter of this id in the first root that has it.

    Raises `InvalidAdapterError` (the id, or what lies there), `NotFoundError`, `SourceUnavailableError` (a
    root cannot be read).
    """
    checked_id(adapter_id)
    named = shown(adapter_id)
    unreadable = False
    for root in roots:
        try:
            root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            unreadable = True
            continue
        try:
            directory = open_below(root_fd, adapter_id)
        except FileNotFoundError:
            continue
        except OSError as error:
            linked = error.errno in (errno.ELOOP, errno.ENOTDIR)
            reason = "a part of its path is a symbolic link or not a directory" if linked else error.strerror
            raise InvalidAdapterError(f"adapter {named} cannot be opened: {reason}") from None
        finally:
            os.close(root_fd)
        return SourceAdapter(directory, named)
    if unreadable:
        raise SourceUnavailableError(f"adapter {named} was not found, and an adapter root cannot be read")
    if not roots:
        raise NotFoundError(f"adapter {named} was not found: this server has no --adapter-root")
    raise NotFoundError(f"adapter {named} was not found below any adapter root")


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
