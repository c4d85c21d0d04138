"""The segmented LoRA product on a CUDA device: what is wrong with a call is an exception before a launch."""

import ctypes

import torch
from torch import Tensor

from lorikeet_server.kernels.cuda import abi
from lorikeet_server.kernels.cuda.tables import DeviceLoraTables
from lorikeet_server.kernels.cuda.tiles import LoraTiles
from lorikeet_server.kernels.lora_batch import LoraBatch
from lorikeet_server.kernels.lora_tables import LoraTable

FORMATS = {torch.bfloat16: 0, torch.float16: 1}


class Sgmv:
    """`Kernels.lora` for tables and tiles of `lorikeet_server.kernels.cuda`."""

    def __init__(self, library: ctypes.CDLL, device: torch.device, *, overlap: bool = True) -> None:
        """`overlap`: each kernel begins while the one before it ends, on devices that can (sm_90)."""
        self._library, self._device = library, device
        able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        self._dependent = able and overlap

    def __call__(self, y: Tensor, x: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        """Add the adapters' products to `y` [rows, sum(out)] in place; `x` [rows, in]; rows may be strided.

        Enqueues two kernels on the current stream. Calls that may overlap must not share tables: they share
        the scratch memory. Raises `ValueError`, `TypeError`.
        """
        self._run(table, batch, x, y)

    def shrink(self, x: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        """The first of the two kernels alone. Steps never ask for it: it is there so that benchmarks can hold
        each kernel against its own bound of bytes and arithmetic, and tests can tell which one is wrong."""
        self._run(table, batch, x, None)

    def expand(self, y: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        """The second kernel; after `shrink` of the same table and batch, before the next `shrink`."""
        self._run(table, batch, None, y)

    def _run(self, table: LoraTable, batch: LoraBatch, x: Tensor | None, y: Tensor | None) -> None:
        of = table.of
        if not isinstance(of, DeviceLoraTables) or not isinstance(batch, LoraTiles):
            raise TypeError(
                f"expected tables and rows made for this backend, not {type(of).__name__} "
                f"and {type(batch).__name__}"
            )
        native = of.native.get(table)
        if native is None:  # nothing can be in it
            return
        rows, dtype = batch.num_rows, of.form.dtype
        call = abi.Call(tables=native, tiles=batch.native, v=of.scratch.data_ptr())
        call.rows, call.tile_rows, call.format = rows, batch.tile_rows, FORMATS[dtype]
        call.live_tiles = batch.live
        # Alone, a kernel may stand where streams meet, which programmatic launches do not cross.
        call.dependent = self._dependent and x is not None and y is not None
        if x is not None:
            self._check(x, "x", (rows, table.in_features), dtype)
            call.x, call.x_stride = x.data_ptr(), x.stride(0) if rows > 1 else x.shape[1]
            call.phases |= abi.SHRINK
        if y is not None:
            self._check(y, "y", (rows, sum(table.out_features)), dtype)
            call.y, call.y_stride = y.data_ptr(), y.stride(0) if rows > 1 else y.shape[1]
            call.phases |= abi.EXPAND
        if rows == 0:
            return
        stream = torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else None
        error: bytes | None = self._library.lorikeet_sgmv(call, stream)
        if error is not None:
            raise ValueError(f"the LoRA product was refused: {error.decode()}")

    def _check(self, tensor: Tensor, name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, not {list(tensor.shape)}")
        if tensor.device != self._device:
            raise ValueError(f"{name} must be on {self._device}, not on {tensor.device}")
        apart = tensor.stride(0) if shape[0] > 1 else 0
        if tensor.stride(1) != 1 or apart % 8 or tensor.data_ptr() % 16:
            raise ValueError(f"{name} must have contiguous rows that begin on 16 bytes")
