"""Opening below a directory and never outside it, whatever the name says and whoever moves things meanwhile.

An adapter id comes from a tenant. It is checked as text first; then the kernel resolves it with openat2
below the root, without symbolic links, or, where openat2 is missing, one component at a time does the same.
"""

import ctypes
import errno
import os
import re

from lorikeet_server.adapters.strict_json import shown
from lorikeet_server.errors import InvalidAdapterError

_MAX_ID = 512
_MAX_DEPTH = 16
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-+=@]{0,254}")
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SYS_OPENAT2 = 437  # the same on every architecture that Linux gained it on
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08


def checked_id(adapter_id: str) -> str:
    """The id itself. Raises `InvalidAdapterError` unless it is a plain relative path."""
    what = f"adapter id {shown(adapter_id)}"
    if not adapter_id or len(adapter_id) > _MAX_ID:
        raise InvalidAdapterError(f"{what} has {len(adapter_id)} characters; 1 to {_MAX_ID} are expected")
    if adapter_id.startswith(("/", "~")):
        raise InvalidAdapterError(f"{what} is absolute; give the path below an adapter root (--adapter-root)")
    parts = adapter_id.split("/")
    if len(parts) > _MAX_DEPTH:
        raise InvalidAdapterError(f"{what} has {len(parts)} parts; at most {_MAX_DEPTH} are expected")
    for part in parts:
        if part in ("", ".", ".."):
            raise InvalidAdapterError(f'{what} has an empty, "." or ".." part')
        if part[-1] in ". ":
            raise InvalidAdapterError(f"{what} has a part that ends in a dot or a space")
        if _COMPONENT.fullmatch(part) is None:
            raise InvalidAdapterError(f"{what} may hold A-Z a-z 0-9 _ - . + = @ and / only")
    return adapter_id


def open_below(root_fd: int, path: str) -> int:
    """An O_PATH descriptor of the directory `path`, a checked id, below `root_fd`.

    Raises `FileNotFoundError` if there is none, other `OSError` if a part is a link or not a directory.
    """
    fd = _openat2(root_fd, path)
    return _walk(root_fd, path) if fd is None else fd


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)


def _openat2(root_fd: int, path: str) -> int | None:
    """None where the kernel or its seccomp filter does not offer it."""
    how = _OpenHow(_DIRECTORY, 0, _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH)
    while True:
        fd = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(root_fd), ctypes.c_char_p(path.encode()),
            ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)),
        )  # fmt: skip
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code in (errno.ENOSYS, errno.EPERM):
            return None
        if code not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: something moved while the kernel walked
            raise OSError(code, os.strerror(code))


def _walk(root_fd: int, path: str) -> int:
    fd = os.dup(root_fd)
    for part in path.split("/"):
        try:
            below = os.open(part, _DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd
