"""Which files are opened, by whichever process: inotify, called through the C library."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

_OPENED = 0x20  # IN_OPEN; an O_PATH descriptor, which nothing can be read from, does not count
_EVENT = struct.Struct("iIII")


class Opens:
    """A context in which opens are recorded of the directories given, and of what lies directly in them."""

    def __init__(self, directories: Iterable[Path]) -> None:
        self.directories = list(directories)

    def __enter__(self) -> Opens:
        libc = ctypes.CDLL(None, use_errno=True)
        self.queue = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watched = {
            libc.inotify_add_watch(self.queue, os.fsencode(directory), _OPENED): directory
            for directory in self.directories
        }
        assert self.queue >= 0 and -1 not in self.watched, os.strerror(ctypes.get_errno())
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.queue)

    def paths(self) -> set[Path]:
        """What was opened since the last call."""
        paths = set()
        while events := self._read():
            while events:
                watch, _, _, length = _EVENT.unpack_from(events)
                name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                paths.add(self.watched[watch] / os.fsdecode(name))
                events = events[_EVENT.size + length :]
        return paths

    def _read(self) -> bytes:
        try:
            return os.read(self.queue, 1 << 16)
        except BlockingIOError:
            return b""
