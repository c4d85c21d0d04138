"""The header of a safetensors file, read strictly.

The format is a little-endian u64, that many bytes of JSON, then the tensors' bytes. The usual readers accept
a million empty tensors, two tensors of one name, or a header as long as the file. A stranger's adapter
gets none of that.
"""

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from lorikeet_server.adapters.strict_json import parse_object, shown
from lorikeet_server.errors import InvalidAdapterError

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
LENGTH_BYTES = 8
# Adapters of one recipe share theirs, byte for byte.
_REMEMBERED_HEADERS = 4
_MAX_METADATA_BYTES = 1 << 20
_MAX_BYTES_PER_TENSOR = 512
_MAX_COMMAS_PER_TENSOR = 8
_MAX_TENSOR_ELEMENTS = 1 << 40
_NAME = re.compile(r"[A-Za-z0-9_.]{1,256}")
_FIELDS = {"dtype", "shape", "data_offsets"}
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class TensorInfo(NamedTuple):
    """One tensor: bytes `begin`..`end` after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def header_bytes(prefix: bytearray, file_bytes: int, what: str) -> int:
    """Length of the JSON part, from the file's first eight bytes. Raises `InvalidAdapterError`."""
    if len(prefix) < LENGTH_BYTES or file_bytes < LENGTH_BYTES + 2:
        raise InvalidAdapterError(f"{what} has {file_bytes} bytes, too few for a safetensors file")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise InvalidAdapterError(
            f"{what} announces a header of {length} bytes; at most {MAX_HEADER_BYTES} are read"
        )
    if length > file_bytes - LENGTH_BYTES:
        raise InvalidAdapterError(
            f"{what} is cut off: its header has {length} bytes and the file {file_bytes}"
        )
    return length


@lru_cache(_REMEMBERED_HEADERS)
def parse_header(
    data: bytes, file_bytes: int, what: str, max_tensors: int = MAX_TENSORS
) -> Mapping[str, TensorInfo]:
    """Tensors by name, in the order of their bytes, which cover the file. Raises `InvalidAdapterError`."""
    _check_density(data, what, min(max_tensors, MAX_TENSORS))
    entries = parse_object(data, f"the header of {what}", MAX_HEADER_BYTES)
    _check_metadata(entries.pop("__metadata__", {}), what)
    if not entries:
        raise InvalidAdapterError(f"{what} holds no tensors")
    tensors = {name: _tensor(name, entry, what) for name, entry in entries.items()}
    ordered = sorted(tensors.items(), key=lambda item: item[1].begin)
    at = 0
    for name, info in ordered:
        if info.begin != at:
            raise InvalidAdapterError(
                f"{what}: tensor {name} starts at byte {info.begin}, not at {at} (a hole or an overlap)"
            )
        at = info.end
    if LENGTH_BYTES + len(data) + at != file_bytes:
        raise InvalidAdapterError(
            f"{what} has {file_bytes} bytes and its header describes {LENGTH_BYTES + len(data) + at}"
        )
    return MappingProxyType(dict(ordered))


def _check_density(data: bytes, what: str, max_tensors: int) -> None:
    """Bound the work of parsing by counting: a hostile header costs a scan and not a million objects."""
    if data[:1] != b"{":
        raise InvalidAdapterError(f"the header of {what} does not start with an object")
    objects = data.count(b"{")
    if objects > max_tensors + 2:
        raise InvalidAdapterError(
            f"{what} has more than {max_tensors} tensors; this model has no use for as many"
        )
    sparse = len(data) > _MAX_METADATA_BYTES + objects * _MAX_BYTES_PER_TENSOR
    if sparse or data.count(b",") > 1024 + objects * _MAX_COMMAS_PER_TENSOR:
        raise InvalidAdapterError(f"the header of {what} is larger than its {objects} objects explain")


def _check_metadata(metadata: Any, what: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidAdapterError(f"__metadata__ of {what} is not an object of strings")


def _tensor(name: str, entry: Any, what: str) -> TensorInfo:
    if _NAME.fullmatch(name) is None:
        raise InvalidAdapterError(
            f"{what}: the tensor name {shown(name)} has characters other than A-Z a-z 0-9 _ ."
        )
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise InvalidAdapterError(f"{what}: tensor {name} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise InvalidAdapterError(
            f"{what}: tensor {name} has dtype {shown(dtype)}; F32, F16 and BF16 are read"
        )
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2:
        raise InvalidAdapterError(
            f"{what}: tensor {name} has a shape or data_offsets that are not whole numbers"
        )
    elements = math.prod(shape) if len(shape) <= 8 else 0
    if not 0 < elements <= _MAX_TENSOR_ELEMENTS:
        raise InvalidAdapterError(
            f"{what}: tensor {name} has the shape {shown(shape)}, which is empty or too large"
        )
    begin, end = offsets
    if end - begin != elements * ITEM_BYTES[dtype]:
        raise InvalidAdapterError(
            f"{what}: tensor {name} of shape {shown(shape)} and dtype {dtype} has {end - begin} bytes "
            f"where {elements * ITEM_BYTES[dtype]} are expected"
        )
    return TensorInfo(dtype, tuple(shape), begin, end)


def _whole(value: Any) -> bool:
    return isinstance(value, list) and {*map(type, value)} <= {int} and min(value, default=0) >= 0
