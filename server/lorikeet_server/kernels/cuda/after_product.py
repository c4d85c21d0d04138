"""What reads a base product together with the adapters' beside it, each as one kernel: what is wrong with a
call is an exception before a launch."""

import ctypes

import torch
from torch import Tensor

from lorikeet_server.kernels.cuda import abi
from lorikeet_server.kernels.cuda.launches import FORMATS, check_whole, stream_of

WIDTH_UNIT = 8  # a thread has as many columns


class AfterProduct:
    """`Kernels.silu_mul`, `gelu_mul` and `add_rms_norm` with a delta, of matrices without gaps. A call
    enqueues one kernel on the current stream, or raises `ValueError` or `TypeError`."""

    def __init__(self, library: ctypes.CDLL, device: torch.device) -> None:
        self._library, self._device = library, device

    @staticmethod
    def gates(gate_up: Tensor) -> bool:
        """Whether `gated` has such rows."""
        return gate_up.shape[1] % (2 * WIDTH_UNIT) == 0

    @staticmethod
    def norms(x: Tensor) -> bool:
        """Whether `add_norm` has such rows."""
        return x.shape[1] % WIDTH_UNIT == 0 and x.shape[1] <= abi.WIDEST_NORM

    def gated(self, gate_up: Tensor, delta: Tensor, activation: int) -> Tensor:
        """`gate_up` and `delta` [T, 2I] -> [T, I]; `activation` is `abi.SILU` or `abi.GELU`."""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        for tensor, name in ((gate_up, "gate_up"), (delta, "delta")):
            check_whole(tensor, name, (rows, 2 * width), gate_up.dtype, self._device)
        out = gate_up.new_empty(rows, width)
        call = abi.Gated(rows=rows, width=width, format=FORMATS[gate_up.dtype], activation=activation)
        call.y, call.delta, call.out = gate_up.data_ptr(), delta.data_ptr(), out.data_ptr()
        raise_for(self._library.lorikeet_gated(call, stream_of(self._device)), "the gated product")
        return out

    def add_norm(
        self, x: Tensor, delta: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float
    ) -> None:
        """Overwrites `residual` [T, n] with its sum with `x` and `delta`, and `x` with the norm of that."""
        shape, dtype = tuple(x.shape), x.dtype
        for tensor, name in ((x, "x"), (delta, "delta"), (residual, "residual")):
            check_whole(tensor, name, shape, dtype, self._device)
        check_whole(weight, "weight", shape[1:], dtype, self._device)
        call = abi.AddNorm(rows=shape[0], width=shape[1], format=FORMATS[dtype], eps=eps, offset=offset)
        call.y, call.delta = x.data_ptr(), delta.data_ptr()
        call.residual, call.weight = residual.data_ptr(), weight.data_ptr()
        raise_for(self._library.lorikeet_add_norm(call, stream_of(self._device)), "sum and norm")


def raise_for(error: bytes | None, what: str) -> None:
    """Raises `ValueError` if a launcher refused the call."""
    if error is not None:
        raise ValueError(f"{what} was refused: {error.decode()}")
