"""Copying an adapter into the store, hashed on the way, in steps that can be watched and abandoned."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from lorikeet_server.adapters.config import CONFIG_FILE
from lorikeet_server.adapters.durable import create_file
from lorikeet_server.adapters.entry import begin_digest
from lorikeet_server.adapters.load import WEIGHTS_FILE
from lorikeet_server.adapters.source_local import SourceAdapter
from lorikeet_server.adapters.store import Store
from lorikeet_server.errors import NoRoomError, SourceUnavailableError, TooLargeError

_CHUNK = 4 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """Bytes copied so far of how many; `digest` in the last one only."""

    bytes_done: int
    bytes_total: int
    digest: str = ""


def take_in(source: SourceAdapter, store: Store, max_bytes: int) -> Iterator[FetchProgress]:
    """Copy both files; the last progress carries the digest. Closing the iterator early undoes it.

    Raises `TooLargeError` (more than `max_bytes`, if that is not 0, or than the store holds), `NoRoomError`,
    `SourceUnavailableError` (the source changed), `OSError`.
    """
    total = len(source.config) + source.weights_bytes
    if max_bytes and total > max_bytes:
        raise TooLargeError(f"the adapter has {total} bytes; at most {max_bytes} are fetched")
    yield FetchProgress(0, total)
    try:
        with store.new_entry(total) as entry:
            running = begin_digest(source.config, source.weights_bytes)
            _write(os.path.join(entry.path, CONFIG_FILE), source.config)
            done = len(source.config)
            fd = create_file(os.path.join(entry.path, WEIGHTS_FILE), source.weights_bytes)
            try:
                while done < total:
                    data = _read(source, min(_CHUNK, total - done))
                    running.update(data)
                    _write_all(fd, data)
                    done += len(data)
                    yield FetchProgress(done, total)
                os.fsync(fd)
            finally:
                os.close(fd)
            source.check_unchanged()
            digest = running.hexdigest()
            entry.publish(digest)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise NoRoomError(
                f"the adapter has {total} bytes and the disk of the adapter store is full"
            ) from None
        raise
    yield FetchProgress(total, total, digest)


def _read(source: SourceAdapter, count: int) -> bytes:
    data = os.read(source.weights_fd, count)
    if not data:
        source.check_unchanged()
        raise SourceUnavailableError(f"{WEIGHTS_FILE} ended before its size while it was copied")
    return data


def _write(path: str, data: bytes) -> None:
    fd = create_file(path, len(data))
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
