"""Adapters, rows and the fp64 definition that the CUDA kernels are compared with."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from cuda_target import Target
from torch import Tensor

from lorikeet_server.kernels import LoraAdapter, LoraMatrices, LoraModule, LoraTable
from lorikeet_server.kernels.cuda import DeviceLoraTables, LoraTiles, Sgmv

# Of a row's norm. y is rounded once, and so is v; bfloat16 has 8 bits, float16 11.
TOLERANCE = {torch.bfloat16: 6e-3, torch.float16: 8e-4}


@dataclass(frozen=True)
class Case:
    """A model of some modules with adapters in its slots, on a device."""

    tables: DeviceLoraTables
    sgmv: Sgmv

    @staticmethod
    def make(
        library: ctypes.CDLL,
        device: torch.device,
        modules: Sequence[LoraModule],
        ranks: Sequence[int],
        dtype: torch.dtype = torch.bfloat16,
        max_rows: int = 300,
        max_rank: int = 512,
    ) -> Case:
        """One slot for each of `ranks`. Every third is a DoRA, every fifth leaves the last slice out."""
        tables = DeviceLoraTables(library, modules, len(ranks), max_rows, dtype, device, max_rank)
        last = {table.first + len(table.columns) - 1 for table in tables.tables if len(table.columns) > 1}
        for slot, rank in enumerate(ranks):
            slices = set(range(len(tables.form.inputs))) - (last if slot % 5 == 4 else set())
            fill(tables, slot, dict.fromkeys(slices, rank))
        tables.commit()
        tables.scratch.fill_(torch.nan)  # nothing may be read that was not written
        return Case(tables, Sgmv(library, device))

    def inputs(self, rows: int, module: int = 0) -> tuple[Tensor, Tensor]:
        """x and y of one module."""
        table, of = self.tables.tables[module], self.tables
        x = torch.randn(rows, table.in_features).to(of.device, table.dtype)
        return x, torch.randn(rows, sum(table.out_features)).to(of.device, table.dtype)

    def run(self, x: Tensor, y: Tensor, slots: Sequence[int], module: int = 0) -> Tensor:
        """A new y, through a new batch."""
        return self.add(x, y.clone(), self.tables.batcher()(slots), module)

    def add(self, x: Tensor, y: Tensor, tiles: LoraTiles, module: int = 0) -> Tensor:
        self.sgmv(y, x, self.tables.tables[module], tiles)
        return y

    def error(self, x: Tensor, y: Tensor, slots: Sequence[int], result: Tensor, module: int = 0) -> float:
        """The largest error of a row, relative to its norm."""
        want = reference(self.tables.tables[module], x, y, slots)
        difference = (result.double() - want).norm(dim=1) / want.norm(dim=1)
        return float(difference.max()) if len(slots) else 0.0


def modules(target: Target) -> list[LoraModule]:
    """q, k and v; one slice of ragged width; gate and up."""
    if target.emulated:
        return [LoraModule(136, (136, 24, 24)), LoraModule(40, (264,)), LoraModule(64, (72, 72))]
    return [
        LoraModule(4096, (4096, 1024, 1024)),
        LoraModule(14336, (4096,)),
        LoraModule(4096, (14336, 14336)),
    ]


def check(case: Case, slots: list[int], module: int = 0) -> None:
    x, y = case.inputs(len(slots), module)
    result = case.run(x, y, slots, module)
    assert case.error(x, y, slots, result, module) < TOLERANCE[x.dtype]
    untouched = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(result[untouched], y[untouched])


def fill(tables: DeviceLoraTables, slot: int, ranks: Mapping[int, int]) -> None:
    """Puts random matrices of these ranks into some slices of a slot, and nothing into the others."""
    form, matrices = tables.form, {}
    for index, rank in ranks.items():
        width, out = form.inputs[index], form.outputs[index]
        g = 0.5 + torch.rand(out) if slot % 3 == 2 else None
        a, b = torch.randn(rank, width) / width**0.5, torch.randn(out, rank)
        matrices[index] = LoraMatrices(a, b, 2.0 / (1 + slot % 4), g)
    adapter = LoraAdapter.of(form, matrices)
    tables.put(slot, adapter.at(adapter.memory.to(tables.device)))


def reference(table: LoraTable, x: Tensor, y: Tensor, slots: Sequence[int]) -> Tensor:
    """`Kernels.lora` in fp64."""
    wanted = y.double()
    columns = wanted.split(list(table.out_features), dim=1)
    for slot in set(slots) - {-1}:
        rows = torch.tensor([row for row, each in enumerate(slots) if each == slot], device=y.device)
        for index, part in enumerate(columns):
            if (entry := table.get(slot, index)) is None:
                continue
            a, b, scale, g = entry
            added = part[rows] + scale * (x[rows].double() @ a.double().t()) @ b.double().t()
            part[rows] = added if g is None else added * g.double()
    return wanted


def popularity(kind: str, rows: int, slots: int) -> list[int]:
    """The adapter slot of each row."""
    zipf = (1 / torch.arange(1, slots + 1) ** 1.5).cumsum(0)
    return {
        "distinct": [row % slots for row in range(rows)],
        "uniform": torch.randint(slots, (rows,)).tolist(),
        "zipf": torch.searchsorted(zipf, torch.rand(rows) * zipf[-1]).tolist(),
        "identical": [slots // 2] * rows,
        "skewed": [0 if torch.rand(()) < 0.9 else int(torch.randint(slots, ())) for _ in range(rows)],
        "base": [-1] * rows,
        "half": [row % slots if row % 2 else -1 for row in range(rows)],
    }[kind]
