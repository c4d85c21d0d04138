"""How large everything is: the real check, or a dry run of the same code on a processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from make_adapters import Shape

from benchmarks.gpu.random_model import GEOMETRIES, write


@dataclass(frozen=True)
class Scale:
    """`streams` clients at a time, each with a prompt of `prompt` tokens that is answered with `tokens`."""

    geometry: str
    streams: int
    prompt: int
    tokens: int
    rank: int
    distinct: tuple[int, ...]
    mixed_ranks: tuple[int, ...]
    rare_rank: int
    known: int
    slots: int
    runs: int

    def model(self, directory: Path) -> Path:
        """The directory of the model, written first if it is not there."""
        return write(directory / self.geometry, GEOMETRIES[self.geometry])

    def retention(self, model: Path, adapters: int) -> float:
        """The most that throughput can keep of the base model's when a step also reads `adapters` adapters:
        bytes of weights and cache over these and the adapters'.
        """
        shape, base = Shape.read(model / "config.json"), GEOMETRIES[self.geometry]
        weights = shape.layers * sum(i * o for i, o in shape.widths.values()) + base.vocabulary * base.hidden
        cache = 2 * shape.layers * shape.widths["k_proj"][1] * (self.prompt + self.tokens // 2) * self.streams
        adapter = shape.layers * self.rank * sum(i + o for i, o in shape.widths.values())
        return (weights + cache) / (weights + cache + adapters * adapter)


# Such a machine may be lent for a quarter of an hour in all: one run each, and every second doubling.
REAL = Scale(
    geometry="llama-3-8b",
    streams=64,
    prompt=128,
    tokens=128,
    rank=16,
    distinct=(1, 4, 16, 64),
    mixed_ranks=(8, 16, 32, 64),
    rare_rank=128,
    known=1000,
    slots=64,
    runs=1,
)
DRY = Scale(
    geometry="tiny",
    streams=8,
    prompt=8,
    tokens=8,
    rank=4,
    distinct=(1, 4),
    mixed_ranks=(2, 4, 6, 8),
    rare_rank=16,
    known=12,
    slots=4,
    runs=1,
)
