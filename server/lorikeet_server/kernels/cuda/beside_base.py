"""Linears whose adapters' products are not added behind the base's, which costs two launches more and another
pass over y."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lorikeet_server.kernels.cuda import abi
from lorikeet_server.kernels.cuda.beside import Beside
from lorikeet_server.kernels.cuda.sgmv import Sgmv
from lorikeet_server.kernels.cuda.tiles import LoraTiles
from lorikeet_server.kernels.lora_batch import LoraBatch
from lorikeet_server.kernels.lora_tables import LoraTable
from lorikeet_server.kernels.packed_linear import PackedLinear
from lorikeet_server.kernels.product import Product
from lorikeet_server.kernels.reference.linear import ReferenceLinear

FEW_TILES = 32  # of an adapter's rows each, whose product is short beside the base's


class BesideBase:
    """`Kernels.adapted_linear`, for captured decodes and for steps of many rows."""

    def __init__(self, sgmv: Sgmv, beside: Beside) -> None:
        self._sgmv, self._beside = sgmv, beside

    def __call__(self, x: Tensor, packed: PackedLinear, table: LoraTable, batch: LoraBatch) -> Product | None:
        """None for other steps: of few rows, the host takes longer to part streams than the device to add."""
        assert isinstance(packed, ReferenceLinear)
        if not isinstance(batch, LoraTiles) or not self._sgmv.can_write(table, batch):
            return None
        if batch.captured:
            return self._side_by_side(x, packed.weight, table, batch)
        if batch.tile_rows == abi.DECODE_TILE:
            return None
        # cuBLAS adds to what is there while it computes: y is not read for the adapters' sake.
        y = x.new_empty(x.shape[0], packed.out_features)
        self._sgmv.write(y, x, table, batch)
        return Product(torch.addmm(y, x, packed.weight.t(), out=y))

    def _side_by_side(self, x: Tensor, weight: Tensor, table: LoraTable, batch: LoraTiles) -> Product:
        delta = x.new_empty(x.shape[0], weight.shape[0])
        with self._beside.begun() as beside:
            # Whichever is called for first has the device to itself until the other begins. A long product of
            # adapters would keep the base's blocks waiting; a short one waits behind them until their end.
            first = batch.most <= FEW_TILES
            if first:
                with beside():
                    self._sgmv.write(delta, x, table, batch)
            y = F.linear(x, weight)
            if not first:
                with beside():
                    self._sgmv.write(delta, x, table, batch)
        return Product(y, delta)
