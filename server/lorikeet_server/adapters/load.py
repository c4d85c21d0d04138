"""From stored bytes to this rank's slice: read once, each tensor checked, cast and sliced as it passes.

Work on data is done in pieces below torch's threshold for going parallel, so that loading takes one core and
never the threads of the token path.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lorikeet_server.adapters.header import LENGTH_BYTES, TensorInfo, header_bytes, parse_header
from lorikeet_server.adapters.plan import PlannedPair
from lorikeet_server.adapters.staged import LoraPair, Places
from lorikeet_server.errors import InvalidAdapterError, NoRoomError
from lorikeet_server.kernels import LoraLayout

WEIGHTS_FILE = "adapter_model.safetensors"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SERIAL = 32_768  # elements; at::internal::GRAIN_SIZE
# The largest float16. No trained LoRA weight comes near, products of two such stay finite in float32, and
# whether an adapter is accepted does not depend on the dtype that this server happens to run in.
_MAX_VALUE = 65_504.0


class Reader(Protocol):
    """Bytes of `adapter_model.safetensors`, in order."""

    weights_bytes: int

    def read(self, count: int) -> bytearray:
        """The next `count` bytes."""
        ...


def read_header(reader: Reader, num_targets: int) -> dict[str, TensorInfo]:
    """The header, leaving `reader` at the first tensor. Raises `InvalidAdapterError`."""
    # Two tensors each can be used. Twice that, so that one too many is still refused by its name.
    max_tensors = 4 * num_targets + 64
    prefix = reader.read(min(LENGTH_BYTES, reader.weights_bytes))
    length = header_bytes(prefix, reader.weights_bytes, WEIGHTS_FILE)
    return parse_header(reader.read(length), reader.weights_bytes, WEIGHTS_FILE, max_tensors)


def load_pairs(
    reader: Reader,
    tensors: dict[str, TensorInfo],
    planned: Sequence[PlannedPair],
    dtype: torch.dtype,
    layout: LoraLayout,
    pinned: bool,
) -> tuple[Tensor, tuple[LoraPair, ...]]:
    """Read every tensor into one new allocation.

    Raises `InvalidAdapterError` naming the tensor, `NoRoomError`.
    """
    places = Places(dtype, layout)
    for pair in planned:
        places.reserve(pair.target, pair.rank)
    try:
        memory = torch.zeros(places.elements, dtype=dtype, pin_memory=pinned)
    except (RuntimeError, MemoryError):
        needed = places.elements * dtype.itemsize
        raise NoRoomError(f"the adapter needs {needed} bytes of host memory, which are not there") from None
    places = Places(dtype, layout)
    pairs = tuple(places.take(memory, pair.target, pair.rank, pair.scale) for pair in planned)
    takers = {pair.a: (_fill_a, placed) for pair, placed in zip(planned, pairs, strict=True)}
    takers |= {pair.b: (_fill_b, placed) for pair, placed in zip(planned, pairs, strict=True)}
    for name, info in tensors.items():  # in file order, by `parse_header`
        values = torch.frombuffer(reader.read(info.end - info.begin), dtype=_DTYPES[info.dtype])
        _check_values(values, name)
        fill, placed = takers[name]
        fill(placed, values.view(info.shape))
    return memory, pairs


def _fill_a(pair: LoraPair, values: Tensor) -> None:
    held = pair.target.inputs
    _copy(pair.a[: pair.rank], values[:, held.start : held.stop])


def _fill_b(pair: LoraPair, values: Tensor) -> None:
    held = pair.target.outputs
    to, given = pair.b[:, : pair.rank], values[held.start : held.stop]
    if to.stride(0) == 1:  # stored rank by rank
        to, given = to.t(), given.t()
    _copy(to, given)


def _copy(to: Tensor, given: Tensor) -> None:
    rows = max(1, _SERIAL // to.shape[1])
    for at in range(0, to.shape[0], rows):
        to[at : at + rows].copy_(given[at : at + rows])


def _check_values(values: Tensor, name: str) -> None:
    for at in range(0, values.numel(), _SERIAL):
        low, high = (bound.item() for bound in values[at : at + _SERIAL].aminmax())
        peak = max(-low, high) if low == low and high == high else math.nan
        if not peak <= _MAX_VALUE:
            raise InvalidAdapterError(
                f"tensor {name} holds the value {peak:g}; values up to {_MAX_VALUE:g} are accepted"
            )
