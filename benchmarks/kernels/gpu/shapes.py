"""What is measured: modules, batches, adapters and ranks, and the least time that the bytes of each allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lorikeet_server.kernels import LoraModule

# Llama-3-8B, and a square of a smaller and of a larger model.
MODULES = {
    "qkv": LoraModule(4096, (4096, 1024, 1024)),
    "o": LoraModule(4096, (4096,)),
    "gate_up": LoraModule(4096, (14336, 14336)),
    "down": LoraModule(14336, (4096,)),
    "h2048": LoraModule(2048, (2048,)),
    "h8192": LoraModule(8192, (8192,)),
}
RANKS: dict[str, tuple[int, ...]] = {
    "8": (8,),
    "16": (16,),
    "32": (32,),
    "64": (64,),
    "128": (128,),
    "mixed 8,16,64": (8, 16, 64),
}
DECODE_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFILL_ROWS = (512, 2048, 8192)
SEGMENTS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Machine:
    """What the device does at best, measured in the same run."""

    bandwidth: float  # bytes per second of a large copy, read and write counted
    arithmetic: float  # operations per second of a large 16-bit matrix product

    def microseconds(self, moved: int, operations: int) -> float:
        return max(moved / self.bandwidth, operations / self.arithmetic) * 1e6


@dataclass(frozen=True)
class Cell:
    """One line of the table: `rows` rows over `adapters` adapters, of `ranks` in turn."""

    module: str
    shape: LoraModule
    rows: int
    adapters: int
    rank: str
    ranks: tuple[int, ...]

    @property
    def slots(self) -> list[int]:
        """The adapter of each row: in turn where rows decode, prompt after prompt where they prefill."""
        if self.rows > DECODE_ROWS[-1]:
            return [row * self.adapters // self.rows for row in range(self.rows)]
        return [row % self.adapters for row in range(self.rows)]

    def rank_of(self, slot: int) -> int:
        return self.ranks[slot % len(self.ranks)]

    @property
    def all_ranks(self) -> int:
        return sum(self.rank_of(slot) for slot in range(self.adapters))

    @property
    def a_bytes(self) -> int:
        """Of all A that the step reads."""
        return 2 * self.all_ranks * self.shape.in_features * len(self.shape.out_features)

    @property
    def b_bytes(self) -> int:
        return 2 * self.all_ranks * sum(self.shape.out_features)

    def least_microseconds(self, phase: str, machine: Machine) -> float:
        """What adapters, x and y alone take, or the arithmetic if that is more: no kernel can be faster."""
        rows, width, out = self.rows, self.shape.in_features, sum(self.shape.out_features)
        ranks = sum(self.rank_of(slot) for slot in self.slots)  # of all rows
        shrink = machine.microseconds(
            self.a_bytes + 2 * rows * width, 2 * ranks * width * len(self.shape.out_features)
        )
        expand = machine.microseconds(self.b_bytes + 4 * rows * out, 2 * ranks * out)
        return {"shrink": shrink, "expand": expand, "both": shrink + expand}[phase]


def decode_cells() -> Iterator[Cell]:
    for name, module in MODULES.items():
        for rows in DECODE_ROWS:
            for adapters in sorted({1, min(4, rows), max(1, rows // 4), rows}):
                for rank, ranks in RANKS.items():
                    yield Cell(name, module, rows, adapters, rank, ranks)


def prefill_cells() -> Iterator[Cell]:
    for name, module in MODULES.items():
        for rows in PREFILL_ROWS:
            for adapters in SEGMENTS:
                for rank, ranks in RANKS.items():
                    yield Cell(name, module, rows, adapters, rank, ranks)


def peer_cells() -> Iterator[Cell]:
    """Those that tell the most: peers need copies of the weights in their own form."""
    for cell in [*decode_cells(), *prefill_cells()]:
        told = cell.module in ("qkv", "down") and cell.rank in ("16", "64", "mixed 8,16,64")
        if told and cell.rows in (1, 16, 64, 256, 2048):
            yield cell


def variant_cells() -> Iterator[Cell]:
    """What one part of the design is worth shows where launches are short, and where they are long."""
    for cell in decode_cells():
        if cell.rank in ("16", "64") and cell.rows in (1, 16, 64, 256) and cell.adapters in (1, cell.rows):
            yield cell


def tiny_cells() -> Iterator[Cell]:
    """For a run that only shows that everything works."""
    for rows, adapters in ((1, 1), (8, 4), (260, 2)):
        for rank, ranks in (("8", (8,)), ("mixed 8,16", (8, 16))):
            yield Cell("tiny", LoraModule(64, (64, 16)), rows, adapters, rank, ranks)
