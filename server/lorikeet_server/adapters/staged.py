"""An adapter in host memory: this rank's slice, checked, in one allocation."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lorikeet_server.adapters.targets import LoraTarget
from lorikeet_server.kernels import RANK_MAJOR, LoraLayout

_ALIGN = 64  # bytes; A and B start on cache lines


@dataclass(frozen=True, slots=True)
class LoraPair:
    """A and B of one module on this rank, stored as the kernels want them.

    The stored rank may be larger than the adapter's: what is beyond is zero.
    """

    target: LoraTarget
    rank: int
    scale: float
    a: Tensor  # [stored rank, inputs]
    b: Tensor  # [outputs, stored rank]


@dataclass(frozen=True, slots=True)
class StagedAdapter:
    """One adapter, ready to be moved into a slot. All tensors are views of `memory`."""

    digest: str
    base_model: str
    memory: Tensor = field(repr=False)  # [elements], one dtype
    pairs: tuple[LoraPair, ...] = field(repr=False)
    layout: LoraLayout = RANK_MAJOR

    @property
    def memory_bytes(self) -> int:
        """Bytes held in this tier, padding included; the same on the host and on a device."""
        return self.memory.numel() * self.memory.element_size()

    @property
    def max_rank(self) -> int:
        """Largest rank of any module."""
        return max(pair.rank for pair in self.pairs)

    def at(self, region: Tensor) -> "StagedAdapter":
        """The same adapter where its bytes have been copied to: `region` u8 [memory_bytes], on any device."""
        memory = region.view(self.memory.dtype)
        places = Places(self.memory.dtype, self.layout)
        pairs = tuple(places.take(memory, pair.target, pair.rank, pair.scale) for pair in self.pairs)
        return replace(self, memory=memory, pairs=pairs)


class Places:
    """Hands out places for pairs in one allocation, one after the other."""

    def __init__(self, dtype: torch.dtype, layout: LoraLayout) -> None:
        self._step, self._layout = _ALIGN // dtype.itemsize, layout
        self.elements = 0

    def reserve(self, target: LoraTarget, rank: int) -> tuple[int, int]:
        """Where A and B of a module start."""
        stored = self._layout.padded(rank)
        return self._take(stored * len(target.inputs)), self._take(stored * len(target.outputs))

    def take(self, memory: Tensor, target: LoraTarget, rank: int, scale: float) -> LoraPair:
        """The views of the next pair in `memory`."""
        at_a, at_b = self.reserve(target, rank)
        stored, inputs, outputs = self._layout.padded(rank), len(target.inputs), len(target.outputs)
        a = memory[at_a : at_a + stored * inputs].view(stored, inputs)
        b = memory[at_b : at_b + stored * outputs]
        b = b.view(stored, outputs).t() if self._layout.b_by_rank else b.view(outputs, stored)
        return LoraPair(target, rank, scale, a, b)

    def _take(self, elements: int) -> int:
        at = self.elements
        self.elements += -(-elements // self._step) * self._step
        return at
