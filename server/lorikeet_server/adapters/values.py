"""Numbers as their bits: whether they are within bounds, and the same numbers in another dtype.

Each is a few calls for megabytes, NumPy's and torch's, which give up the interpreter lock meanwhile and take
one thread: steps go on beside it.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lorikeet_server.errors import InvalidAdapterError

Bits = npt.NDArray[np.signedinteger[Any]]  # as wide as the numbers

_SERIAL = 32_768  # elements; at::internal::GRAIN_SIZE, up to which torch takes one thread


class Kind(NamedTuple):
    """A dtype, as safetensors files name it."""

    dtype: torch.dtype
    bits: np.dtype[np.signedinteger[Any]]
    # The largest float16, or the next below it. No trained LoRA weight comes near, products of two such stay
    # finite in float32, and whether an adapter is accepted does not depend on the dtype that is served.
    largest: int


KINDS = {
    "F32": Kind(torch.float32, np.dtype(np.int32), 0x477F_E000),
    "F16": Kind(torch.float16, np.dtype(np.int16), 0x7BFF),
    "BF16": Kind(torch.bfloat16, np.dtype(np.int16), 0x477F),
}
MAX_VALUE = 65_504


def within_bounds(bits: Bits, kind: Kind) -> bool:
    """Whether no number is NaN or above `MAX_VALUE`, with either sign."""
    # Numbers of one sign are ordered as their bits are, and NaN is beyond infinity. As unsigned integers, all
    # negative numbers are above all others.
    unsigned = bits.view(f"u{bits.itemsize}")
    sign = 1 << (8 * bits.itemsize - 1)
    return bool(bits.max() <= kind.largest and unsigned.max() <= sign | kind.largest)


def check(bits: Bits, kind: Kind, name: str) -> None:
    """Raises `InvalidAdapterError` with the value of tensor `name` that is out of bounds."""
    if not within_bounds(bits, kind):
        value = torch.from_numpy(bits).view(kind.dtype).float().abs().max().item()  # NaN wins
        raise InvalidAdapterError(
            f"tensor {name} holds the value {value:g}; values up to {MAX_VALUE} are accepted"
        )


def cast(bits: Bits, kind: Kind, dtype: torch.dtype) -> Bits:
    """The numbers in `dtype`, rounded to nearest."""
    if kind.dtype == dtype:
        return bits
    made = convert(torch.from_numpy(bits).view(kind.dtype), dtype)
    return made.view(torch.int16 if dtype.itemsize == 2 else torch.int32).numpy()


def convert(given: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A vector `[n]` in `dtype`, rounded to nearest; itself if it already is."""
    if given.dtype == dtype:
        return given
    made = torch.empty(given.shape, dtype=dtype)
    for at in range(0, len(given), _SERIAL):
        made[at : at + _SERIAL].copy_(given[at : at + _SERIAL])
    return made
