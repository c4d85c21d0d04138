"""What layers are made from: weights, kernels, and this rank's share of both."""

from dataclasses import dataclass, field

import torch

from lorikeet_server.dist import TensorParallel
from lorikeet_server.errors import ModelError
from lorikeet_server.kernels import Kernels, LinearMode
from lorikeet_server.layers.lora import LoraSite
from lorikeet_server.weights import Slice, WeightSource


@dataclass(frozen=True, slots=True)
class Build:
    """Passed down while a model is put together. Every linear registers itself in `sites` as it is built."""

    source: WeightSource
    kernels: Kernels
    mode: LinearMode
    tp: TensorParallel
    sites: list[LoraSite] = field(default_factory=list)

    def load(self, name: str, shape: tuple[int, ...], part: Slice | None = None) -> torch.Tensor:
        """A tensor, or this rank's slice of it, after checking the whole one's shape against the config."""
        found = self.source.shape(name)
        if found != shape:
            raise ModelError(f"{name} has shape {list(found)}, the model's config.json says {list(shape)}")
        return self.source.load(name, part)

    def vector(self, name: str, size: int, part: Slice | None = None) -> torch.Tensor:
        """A norm weight or bias, in the float32 of the activations."""
        return self.load(name, (size,), part).float()
