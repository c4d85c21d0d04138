"""The header of a GGUF file: its metadata and where its tensors lie.

The `gguf` package's own reader wraps each of a vocabulary's 100,000 strings in a numpy array, which takes
seconds at every start; this reader takes hundredths, and answers a damaged file with one line. The format is
specified in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Architectures and quantisation are not
known here.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from lorikeet_server.weights.digest import Extent
from lorikeet_server.weights.error import WeightsError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as stored. `shape` is in torch's order (outermost first); `extent` counts from the file's
    start."""

    name: str
    shape: tuple[int, ...]
    quantization: GGMLQuantizationType
    extent: Extent


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata by key (`llama.block_count`), tensors by GGUF name, and the length of the header in bytes."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    length: int

    @classmethod
    def read(cls, path: Path) -> GgufHeader:
        """Reads and checks a header. Raises WeightsError naming the path if the file is not usable GGUF."""
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(data)
        except OSError as error:
            raise WeightsError(f"cannot read model file {path}: {error.strerror or error}") from error
        except _DamagedError as error:
            raise WeightsError(f"{path} is not a usable GGUF file: {error}") from error
        except _NONSENSE as error:
            raise WeightsError(
                f"{path} is not a usable GGUF file: damaged or cut short; fetch it again"
            ) from error


# What reading random bytes as numbers, lengths and nested arrays runs into.
_NONSENSE = (struct.error, ValueError, OverflowError, TypeError, ZeroDivisionError, RecursionError)


class _DamagedError(Exception):
    """What is wrong with the file, in a few words."""


class _Cursor:
    """Reads little-endian values one after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.offset = 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.offset)
        self.offset += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        begin, end = self.offset, self.offset + length
        if end > len(self.data):
            raise _DamagedError("a string runs past the end of the file; fetch it again")
        self.offset = end
        return self.data[begin:end].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise _DamagedError(f"unknown metadata type {kind}")
        return self.scalar(_SCALARS[kind])

    def array(self) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if count > len(self.data):
            raise _DamagedError("an array runs past the end of the file; fetch it again")
        if kind not in _SCALARS:
            return [self.value(kind) for _ in range(count)]
        values = struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.data, self.offset)
        self.offset += struct.calcsize(f"<{count}{_SCALARS[kind]}")
        return list(values)


def _parse(data: mmap.mmap) -> GgufHeader:
    if data[:4] != b"GGUF":
        raise _DamagedError("it does not begin with GGUF")
    cursor = _Cursor(data)
    cursor.offset = 4
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise _DamagedError(f"version {version}, where 2 and 3 are known (or it is big-endian)")
    tensor_count, metadata_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {}
    for _ in range(metadata_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    entries = [_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    length = cursor.offset + -cursor.offset % alignment
    tensors = {}
    for name, shape, quantization, offset in entries:
        extent = Extent(length + offset, length + offset + _stored_bytes(name, shape, quantization))
        if extent.end > len(data):
            raise _DamagedError(f"tensor {name} runs past the end of the file; fetch it again")
        tensors[name] = GgufTensor(name, shape, quantization, extent)
    return GgufHeader(metadata, tensors, length)


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name = cursor.string()
    dims = cursor.scalar("I")
    if dims > _MAX_DIMS:
        raise _DamagedError(f"tensor {name} has {dims} dimensions")
    shape = tuple(reversed([cursor.scalar("Q") for _ in range(dims)]))
    kind, offset = cursor.scalar("I"), cursor.scalar("Q")
    try:
        return name, shape, GGMLQuantizationType(kind), offset
    except ValueError:
        raise _DamagedError(f"tensor {name} has the unknown type {kind}") from None


def _stored_bytes(name: str, shape: tuple[int, ...], quantization: GGMLQuantizationType) -> int:
    block, block_bytes = GGML_QUANT_SIZES[quantization]
    if not shape or shape[-1] % block:
        raise _DamagedError(f"tensor {name} of shape {shape} does not divide into blocks of {block}")
    return math.prod(shape) // block * block_bytes
