"""One cell of the table: ours, peers, variants of ours."""

from __future__ import annotations

import ctypes
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from benchmarks.kernels.gpu.clock import Clock
from benchmarks.kernels.gpu.layers import Layers, Pool
from benchmarks.kernels.gpu.peers import PEERS
from benchmarks.kernels.gpu.report import AFTER_BASE, AS_SERVED, BEFORE, Line
from benchmarks.kernels.gpu.shapes import Cell
from lorikeet_server.kernels import LoraModule

VARIANTS: dict[str, dict[str, bool]] = {"without overlap": {"overlap": False}, "DoRA": {"dora": True}}


@dataclass(frozen=True)
class Bench:
    """What every cell is measured with."""

    library: ctypes.CDLL
    pool: Pool
    clock: Clock
    part: str
    before: ctypes.CDLL | None = None  # of an earlier commit

    def line(self, cell: Cell) -> Line:
        layers = Layers.make(self.library, cell, self.pool)
        ours = layers.ours()
        check(layers.result(ours["both"]), layers.expected())
        line = Line(cell, {name: self.clock.microseconds(run, layers.count) for name, run in ours.items()})
        if self.before is not None:
            earlier = Layers.make(self.before, cell, self.pool).ours()
            line.variants |= {
                BEFORE[phase]: self.clock.microseconds(run, layers.count) for phase, run in earlier.items()
            }
        if self.part == "peers":
            self._peers(line, layers)
        if self.part == "variants":
            for name, how in VARIANTS.items():
                other = Layers.make(self.library, cell, self.pool, **how)
                line.variants[name] = self.clock.microseconds(other.ours()["both"], other.count)
            base = {AFTER_BASE: layers.after_base, AS_SERVED: layers.as_served}
            line.variants |= {
                name: self.clock.microseconds(make(), layers.count) for name, make in base.items()
            }
        return line

    def _peers(self, line: Line, layers: Layers) -> None:
        expected, count = layers.expected(), min(layers.count, 4)
        for name, make in PEERS.items():
            try:
                run = make(layers, count)  # with a copy of the weights of its own
                check(layers.result(run), expected)
                line.peers[name] = self.clock.microseconds(run, count)
            except Exception as error:  # whatever is wrong with a peer must not end the run
                line.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"

    def host(self) -> dict[str, str]:
        """What a step costs the host before its kernels: its rows cut into tiles."""
        found = {}
        for rows, adapters in ((1, 1), (64, 64), (256, 256), (8192, 16)):
            shape = LoraModule(64, (64,))
            layers = Layers.make(self.library, Cell("host", shape, rows, adapters, "8", (8,)), self.pool)
            batcher, slots = layers.tables.batcher(), np.array(layers.cell.slots, np.int32)
            times = []
            for _ in range(50):
                started = time.perf_counter()
                batcher(slots)
                times.append((time.perf_counter() - started) * 1e6)
            found[f"tiles of {rows} rows, {adapters} adapters, on the host"] = (
                f"{statistics.median(times):.0f} us"
            )
        return found


def measure(bench: Bench, cells: Sequence[Cell], seconds: float) -> Iterator[Line]:
    """Line after line until the time is up, in an order that leaves no part of the matrix out."""
    deadline = time.monotonic() + seconds
    order = random.Random(0).sample(cells, len(cells))
    for done, cell in enumerate(order):
        if time.monotonic() > deadline:
            print(f"the time was up after {done} of {len(order)} cells", file=sys.stderr)
            return
        yield bench.line(cell)


def check(result: Tensor, expected: Tensor) -> None:
    """Raises ValueError if a result is another than float64's: in any row, more than 16 bits explain."""
    apart = float(((result - expected).norm(dim=1) / expected.norm(dim=1)).max())
    if not apart < 0.02:
        raise ValueError(f"its result differs by {apart:.3f} of the norm of a row")
