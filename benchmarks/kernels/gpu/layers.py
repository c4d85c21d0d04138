"""Adapters for one cell: several layers with memory of their own, so that a call finds none of it cached."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernels.gpu.shapes import Cell
from lorikeet_server.kernels import LoraAdapter, LoraSegments, select
from lorikeet_server.kernels.cuda import DeviceLoraTables, LoraTiles, Sgmv
from lorikeet_server.kernels.cuda.backend import CudaKernels
from lorikeet_server.kernels.cuda.tiles import DECODE_ROWS

CALLS = 20
Run = Callable[[int], object]  # of a layer


class Pool:
    """Random numbers to cut matrices from. Cutting begins anew for each cell."""

    def __init__(self, elements: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        self.memory = torch.empty(elements, dtype=dtype, device=device)
        for part in self.memory.split(1 << 28):
            part.normal_(0, 0.02)
        self.at = 0

    def take(self, size: int) -> Tensor:
        """The next bytes; `size` is a multiple of 64."""
        piece = self.memory.view(torch.uint8)[self.at : self.at + size]
        self.at += size
        return piece


@dataclass(frozen=True)
class Layers:
    """The tables of a cell, its rows, and the weights for peers."""

    cell: Cell
    tables: DeviceLoraTables
    tiles: LoraTiles
    sgmv: Sgmv
    x: Tensor
    y: Tensor

    @staticmethod
    def make(
        library: ctypes.CDLL, cell: Cell, pool: Pool, dora: bool = False, overlap: bool = True
    ) -> Layers:
        """As many layers as fit the pool, at most `CALLS`. Raises ValueError if not even one does."""
        pool.at = 0
        device, dtype = pool.memory.device, pool.memory.dtype
        needed = cell.a_bytes + cell.b_bytes + cell.adapters * len(cell.shape.out_features) * 256
        if dora:
            needed += 4 * cell.adapters * sum(cell.shape.out_features)
        count = min(CALLS, pool.memory.nbytes // needed)
        if count < 1:
            raise ValueError(f"a layer needs {needed} bytes, the pool has {pool.memory.nbytes}")
        modules = [cell.shape] * count
        tables = DeviceLoraTables(library, modules, cell.adapters, cell.rows, dtype, device, max(cell.ranks))
        slices = len(tables.form.inputs)
        for slot in range(cell.adapters):
            ranks, scales = np.full(slices, cell.rank_of(slot)), np.ones(slices, np.float32)
            # What DoRA multiplies by is then some number of the pool, like all else.
            adapter = LoraAdapter.allocate(tables.form, ranks, scales, pool.take, np.full(slices, dora))
            tables.put(slot, adapter)
        tables.commit()
        x = torch.randn(cell.rows, cell.shape.in_features, device=device).to(dtype)
        y = torch.zeros(cell.rows, sum(cell.shape.out_features), device=device, dtype=dtype)
        # As a decode captures it, for any mix; prompts are computed as they come.
        most = cell.adapters if cell.rows <= DECODE_ROWS else None
        tiles = tables.batcher()(cell.slots, most)
        return Layers(cell, tables, tiles, Sgmv(library, device, overlap=overlap), x, y)

    @property
    def count(self) -> int:
        return len(self.tables.tables)

    def result(self, run: Run) -> Tensor:
        """What a call adds to zeros."""
        self.y.zero_()
        run(0)
        return self.y.clone()

    def expected(self) -> Tensor:
        """The same of the first layer by float64, in float32."""
        result, segments = torch.zeros_like(self.y, dtype=torch.float32), LoraSegments.build(self.cell.slots)
        reference = select("reference", device=self.x.device)
        reference.lora(result, self.x.double(), self.tables.tables[0], segments)
        return result

    def ours(self) -> dict[str, Run]:
        """Both kernels, and each alone."""
        table, tiles = self.tables.tables, self.tiles
        return {
            "both": lambda layer: self.sgmv(self.y, self.x, table[layer], tiles),
            "shrink": lambda layer: self.sgmv.shrink(self.x, table[layer], tiles),
            "expand": lambda layer: self.sgmv.expand(self.y, table[layer], tiles),
        }

    def after_base(self) -> Run:
        """The base product, then both kernels, then an op that reads what they gave."""
        weights, read = self._base_weights(), torch.empty_like(self.y)

        def run(layer: int) -> None:
            torch.mm(self.x, weights[layer % len(weights)].t(), out=self.y)
            self.sgmv(self.y, self.x, self.tables.tables[layer], self.tiles)
            torch.neg(self.y, out=read)

        return run

    def as_served(self) -> Run:
        """The same in the order that the backend has for such a step."""
        if self.x.device.type != "cuda":
            return self.after_base()
        kernels = CudaKernels(self.x.device, self.x.dtype)
        weights = [kernels.pack_linear(weight, "bfloat16") for weight in self._base_weights()]
        read = torch.empty_like(self.y)

        def run(layer: int) -> None:
            table, weight = self.tables.tables[layer], weights[layer % len(weights)]
            product = kernels.adapted_linear(self.x, weight, table, self.tiles)
            assert product is not None, "captured, or of many rows"
            if product.delta is None:
                torch.neg(product.y, out=read)
            else:
                torch.add(product.y, product.delta, out=read)

        return run

    def _base_weights(self) -> list[Tensor]:
        """More bytes than a cache holds."""
        shape = sum(self.cell.shape.out_features), self.cell.shape.in_features
        return [
            torch.randn(shape, device=self.x.device).mul_(0.02).to(self.x) for _ in range(min(self.count, 4))
        ]

    def stacked(self, layer: int, index: int) -> tuple[Tensor, Tensor]:
        """A [adapters, largest rank, in] and B [adapters, out, largest rank] of a slice: what peers take."""
        table, rank = self.tables.tables[layer], self.tables.max_rank
        a = torch.zeros(self.cell.adapters, rank, table.in_features).to(self.x)
        b = torch.zeros(self.cell.adapters, table.out_features[index], rank).to(self.x)
        for slot in range(self.cell.adapters):
            entry = table.get(slot, index)
            assert entry is not None
            a[slot, : entry[0].shape[0]], b[slot, :, : entry[1].shape[1]] = entry[0], entry[1]
        return a, b
