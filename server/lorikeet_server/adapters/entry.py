"""One adapter in the content-addressed store: two files, and the digest that is its name.

The digest is sha256 over the length and the bytes of `adapter_config.json`, then the length and the bytes of
`adapter_model.safetensors`; the lengths, big-endian u64, keep one file's end from passing for the
other's beginning.
"""

import hashlib
import os
import re
from types import TracebackType
from typing import TYPE_CHECKING

from lorikeet_server.adapters.config import CONFIG_FILE, MAX_CONFIG_BYTES
from lorikeet_server.adapters.load import WEIGHTS_FILE
from lorikeet_server.errors import DataLossError, InvalidAdapterError, NotFoundError

if TYPE_CHECKING:
    from hashlib import _Hash

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = 4 << 20
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def is_digest(name: str) -> bool:
    """Whether `name` can be a digest."""
    return _DIGEST.fullmatch(name) is not None


def checked_digest(digest: str) -> str:
    """The digest itself. Raises `InvalidAdapterError` unless it is one: no other string becomes a path."""
    if not is_digest(digest):
        raise InvalidAdapterError("a digest has 64 hexadecimal digits in lower case")
    return digest


def begin_digest(config: bytes, weights_bytes: int) -> "_Hash":
    """The hash of everything that comes before the weights."""
    running = hashlib.sha256(len(config).to_bytes(8, "big"))
    running.update(config)
    running.update(weights_bytes.to_bytes(8, "big"))
    return running


class StoredAdapter:
    """An entry opened for reading once, front to back. `verify` tells whether all that was read is right."""

    def __init__(self, store_dir: str, digest: str) -> None:
        self._digest = checked_digest(digest)
        directory = os.path.join(store_dir, digest)
        try:
            with open(os.open(os.path.join(directory, CONFIG_FILE), READ_FLAGS), "rb") as file:
                self.config = file.read(MAX_CONFIG_BYTES + 1)
            self._fd = os.open(os.path.join(directory, WEIGHTS_FILE), READ_FLAGS)
        except FileNotFoundError:
            raise NotFoundError(f"no adapter {digest} in the store; fetch it first") from None
        except OSError as error:
            raise DataLossError(f"the stored adapter {digest} cannot be read: {error.strerror}") from None
        self.weights_bytes = os.fstat(self._fd).st_size
        self._left = self.weights_bytes
        self._running = begin_digest(self.config, self.weights_bytes)

    def read(self, count: int) -> bytearray:
        """The next bytes of the weights. Raises `DataLossError` if the file has become shorter."""
        data = bytearray(count)
        view, done = memoryview(data), 0
        while done < count:
            try:
                got = os.readv(self._fd, [view[done:]])
            except OSError as error:
                raise DataLossError(
                    f"the stored adapter {self._digest} cannot be read: {error.strerror}"
                ) from None
            if got == 0:
                raise DataLossError(f"the stored adapter {self._digest} has become shorter")
            done += got
        self._running.update(data)
        self._left -= count
        return data

    def verify(self) -> None:
        """Read what is left and compare. Raises `DataLossError`."""
        while self._left > 0:
            self.read(min(_CHUNK, self._left))
        if self._running.hexdigest() != self._digest:
            raise DataLossError(
                f"the stored adapter {self._digest} no longer has this digest; fetch it again"
            )

    def __enter__(self) -> "StoredAdapter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        os.close(self._fd)
