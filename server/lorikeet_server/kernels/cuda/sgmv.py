"""The segmented LoRA product on a CUDA device: what is wrong with a call is an exception before a launch."""

import ctypes

import torch
from torch import Tensor

from lorikeet_server.kernels.cuda import abi
from lorikeet_server.kernels.cuda.launches import FORMATS, can_overlap, check_rows, stream_of
from lorikeet_server.kernels.cuda.tables import DeviceLoraTables
from lorikeet_server.kernels.cuda.tiles import LoraTiles
from lorikeet_server.kernels.lora_batch import LoraBatch
from lorikeet_server.kernels.lora_tables import LoraTable


class Sgmv:
    """`Kernels.lora` for tables and tiles of `lorikeet_server.kernels.cuda`."""

    def __init__(self, library: ctypes.CDLL, device: torch.device, *, overlap: bool = True) -> None:
        """`overlap`: each kernel begins while the one before it ends, on devices that can (sm_90)."""
        self._library, self._device = library, device
        self._dependent = overlap and can_overlap(device)

    def __call__(self, y: Tensor, x: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        """Add the adapters' products to `y` [rows, sum(out)] in place; `x` [rows, in]; rows may be strided.

        Enqueues two kernels on the current stream. Calls that may overlap must not share tables: they share
        the scratch memory. Raises `ValueError`, `TypeError`.
        """
        self._run(table, batch, x, y)

    def can_write(self, table: LoraTable, batch: LoraBatch) -> bool:
        """Whether `write` takes them."""
        of = table.of
        return isinstance(batch, LoraTiles) and isinstance(of, DeviceLoraTables) and table in of.native

    def write(self, delta: Tensor, x: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        """As a call, but into `delta`, whatever was there: zeros for rows and slices without an adapter, and
        NaN for a slice with DoRA, which scales what is not here."""
        self._run(table, batch, x, delta, alone=True)

    def shrink(self, x: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        """The first of the two kernels alone. Steps never ask for it: it is there so that benchmarks can hold
        each kernel against its own bound of bytes and arithmetic, and tests can tell which one is wrong."""
        self._run(table, batch, x, None)

    def expand(self, y: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        """The second kernel; after `shrink` of the same table and batch, before the next `shrink`."""
        self._run(table, batch, None, y)

    def _run(
        self, table: LoraTable, batch: LoraBatch, x: Tensor | None, y: Tensor | None, *, alone: bool = False
    ) -> None:
        of = table.of
        if not isinstance(of, DeviceLoraTables) or not isinstance(batch, LoraTiles):
            raise TypeError(
                f"expected tables and rows made for this backend, not {type(of).__name__} "
                f"and {type(batch).__name__}"
            )
        native = of.native.get(table)
        if native is None:  # nothing can be in it
            if alone:
                raise ValueError("a module whose widths are not multiples of 8 has no product to be written")
            return
        rows, dtype = batch.num_rows, of.form.dtype
        call = abi.Call(tables=native, tiles=batch.native, v=of.scratch.data_ptr())
        call.rows, call.tile_rows, call.format = rows, batch.tile_rows, FORMATS[dtype]
        call.most_tiles, call.alone = batch.most, alone
        # Alone, a kernel may stand where streams meet, which programmatic launches do not cross.
        call.dependent = self._dependent and x is not None and y is not None
        if x is not None:
            check_rows(x, "x", (rows, table.in_features), dtype, self._device)
            call.x, call.x_stride = x.data_ptr(), x.stride(0) if rows > 1 else x.shape[1]
            call.phases |= abi.SHRINK
        if y is not None:
            check_rows(y, "y", (rows, sum(table.out_features)), dtype, self._device)
            call.y, call.y_stride = y.data_ptr(), y.stride(0) if rows > 1 else y.shape[1]
            call.phases |= abi.EXPAND
        if rows == 0:
            return
        error: bytes | None = self._library.lorikeet_sgmv(call, stream_of(self._device))
        if error is not None:
            raise ValueError(f"the LoRA product was refused: {error.decode()}")
