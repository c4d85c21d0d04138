"""From stored bytes to this rank's slice: read once, in runs of tensors, each checked, cast and sliced as it
passes.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lorikeet_server.adapters import values
from lorikeet_server.adapters.base_weights import BaseWeight
from lorikeet_server.adapters.header import LENGTH_BYTES, TensorInfo, header_bytes
from lorikeet_server.adapters.plan import PlannedPair
from lorikeet_server.device.huge_pages import HUGE_PAGE, filling, mapping
from lorikeet_server.errors import NoRoomError
from lorikeet_server.kernels import LoraAdapter, LoraForm

WEIGHTS_FILE = "adapter_model.safetensors"

# Read, hashed, checked and cast at once: it stays in a core's cache, and what is done once for each is cheap.
_RUN_BYTES = 1 << 18


class Place(NamedTuple):
    """Where a part of a tensor goes, in as many dimensions as it takes."""

    to: values.Bits
    rows: slice
    columns: slice


class Reader(Protocol):
    """Bytes of `adapter_model.safetensors`, in order."""

    weights_bytes: int

    def read(self, count: int) -> bytearray:
        """The next `count` bytes."""
        ...


def read_header(reader: Reader) -> bytes:
    """The header's JSON, leaving `reader` at the first tensor. Raises `InvalidAdapterError`."""
    prefix = reader.read(min(LENGTH_BYTES, reader.weights_bytes))
    return bytes(reader.read(header_bytes(prefix, reader.weights_bytes, WEIGHTS_FILE)))


def load(
    reader: Reader,
    tensors: Mapping[str, TensorInfo],
    planned: Sequence[PlannedPair],
    repeated: Mapping[str, BaseWeight],
    form: LoraForm,
    *,
    pinned: bool,
) -> LoraAdapter:
    """Read every tensor into one new allocation, but for those that only repeat the base's weights.

    Raises `InvalidAdapterError` naming the tensor, `NoRoomError`, `SourceUnavailableError`.
    """
    ranks, scales = np.zeros(len(form.inputs), np.int64), np.zeros(len(form.inputs), np.float32)
    for pair in planned:
        ranks[pair.slice_index], scales[pair.slice_index] = pair.rank, pair.scale

    adapter = LoraAdapter.allocate(form, ranks, scales, lambda size: _memory(size, pinned=pinned))
    places = dict(_places(adapter, planned))
    # In file order, by `parse_header`.
    for (base, dtype, _), run in groupby(
        tensors.items(), lambda item: (repeated.get(item[0]), item[1].dtype, item[1].begin // _RUN_BYTES)
    ):
        if base is not None:
            for name, info in run:
                base.check(name, dtype, _digest(reader, info.end - info.begin))
            continue
        for name, given in _read(reader, list(run), values.KINDS[dtype], form.dtype):
            for to, rows, columns in places[name]:
                to[...] = given[rows, columns].reshape(to.shape)
    return adapter


def _memory(size: int, *, pinned: bool) -> Tensor:
    """Zero bytes, `size` or a few more. Raises `NoRoomError`."""
    try:
        if pinned or filling(size) < HUGE_PAGE:
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        else:
            memory = mapping(filling(size))
    except (RuntimeError, MemoryError, OSError):
        raise NoRoomError(f"the adapter needs {size} bytes of host memory, which are not there") from None
    memory.numpy().fill(0)  # now and on one thread: torch.zeros would take those of the steps
    return memory


def _digest(reader: Reader, size: int) -> str:
    running = hashlib.sha256()
    for at in range(0, size, _RUN_BYTES):
        running.update(reader.read(min(_RUN_BYTES, size - at)))
    return running.hexdigest()


def _places(adapter: LoraAdapter, planned: Sequence[PlannedPair]) -> Iterator[tuple[str, list[Place]]]:
    """Where each tensor of the file goes, by name."""
    form, everything = adapter.form, slice(None)
    size = form.dtype.itemsize
    memory = adapter.memory.numpy().view(f"i{size}")
    starts = [(adapter.entries[side] - adapter.memory.data_ptr()) // size for side in "ab"]
    at_a, at_b = (each.tolist() for each in starts)
    for pair in planned:
        index, rank, inputs, outputs = pair.slice_index, pair.rank, pair.target.inputs, pair.target.outputs
        stored = int(adapter.entries["rank"][index])
        a = memory[at_a[index] : at_a[index] + stored * len(inputs)].reshape(stored, -1)
        b = memory[at_b[index] : at_b[index] + stored * len(outputs)]
        yield pair.a, [Place(a[:rank], everything, slice(inputs.start, inputs.stop))]
        to_b = [
            Place(to[..., :rank], slice(outputs.start + of.start, outputs.start + of.stop), everything)
            for of, to in form.layout.b_parts(b, stored)
        ]
        yield pair.b, to_b


def _read(
    reader: Reader, run: Sequence[tuple[str, TensorInfo]], kind: values.Kind, dtype: torch.dtype
) -> Iterator[tuple[str, values.Bits]]:
    """The next tensors, all of one kind, in `dtype`."""
    first, size = run[0][1].begin, kind.dtype.itemsize
    bits = np.frombuffer(reader.read(run[-1][1].end - first), kind.bits)
    places = [slice((info.begin - first) // size, (info.end - first) // size) for _, info in run]
    if not values.within_bounds(bits, kind):
        for (name, _), place in zip(run, places, strict=True):
            values.check(bits[place], kind, name)
    made = values.cast(bits, kind, dtype)
    for (name, info), place in zip(run, places, strict=True):
        yield name, made[place].reshape(info.shape)
