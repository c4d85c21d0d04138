"""An adapter in host memory: this rank's slice, checked, in one allocation."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lorikeet_server.adapters.targets import LoraTarget

_ALIGN = 64  # bytes; A and B start on cache lines


@dataclass(frozen=True, slots=True)
class LoraPair:
    """A and B of one module on this rank. `b` is a view of memory laid out rank by rank."""

    target: LoraTarget
    rank: int
    scale: float
    a: Tensor  # [rank, inputs]
    b: Tensor  # [outputs, rank]


@dataclass(frozen=True, slots=True)
class StagedAdapter:
    """One adapter, ready to be moved into a slot. All tensors are views of `memory`."""

    digest: str
    base_model: str
    memory: Tensor = field(repr=False)  # [elements], one dtype
    pairs: tuple[LoraPair, ...] = field(repr=False)

    @property
    def memory_bytes(self) -> int:
        """Bytes held in this tier, padding included; the same on the host and on a device."""
        return self.memory.numel() * self.memory.element_size()

    @property
    def max_rank(self) -> int:
        """Largest rank of any module."""
        return max(pair.rank for pair in self.pairs)

    def to(self, device: torch.device) -> "StagedAdapter":
        """The same adapter on `device`, moved as one copy; itself if it is there already."""
        if self.memory.device == device:
            return self
        memory = self.memory.to(device, non_blocking=True)
        layout = Layout(self.memory.dtype)
        pairs = tuple(layout.place(memory, pair.target, pair.rank, pair.scale) for pair in self.pairs)
        return StagedAdapter(self.digest, self.base_model, memory, pairs)


class Layout:
    """Hands out places for pairs in one allocation, one after the other."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._step = _ALIGN // dtype.itemsize
        self.elements = 0

    def reserve(self, target: LoraTarget, rank: int) -> tuple[int, int]:
        """Where A and B of a module start."""
        return self._take(rank * len(target.inputs)), self._take(rank * len(target.outputs))

    def place(self, memory: Tensor, target: LoraTarget, rank: int, scale: float) -> LoraPair:
        """The views of the next pair in `memory`."""
        at_a, at_b = self.reserve(target, rank)
        inputs, outputs = len(target.inputs), len(target.outputs)
        a = memory[at_a : at_a + rank * inputs].view(rank, inputs)
        b = memory[at_b : at_b + rank * outputs].view(rank, outputs).t()
        return LoraPair(target, rank, scale, a, b)

    def _take(self, elements: int) -> int:
        at = self.elements
        self.elements += -(-elements // self._step) * self._step
        return at
