"""What layers are made from: weights, kernels, and this rank's share of both."""

from dataclasses import dataclass, field

import torch

from lorikeet_server.dist import TensorParallel
from lorikeet_server.errors import ModelError
from lorikeet_server.kernels import Kernels, LinearMode
from lorikeet_server.layers.lora import LoraSite
from lorikeet_server.weights import Slice, WeightSource

# The largest float16. Beyond it a weight would become infinite.
_FLOAT16_MAX = torch.finfo(torch.float16).max
# Of the narrowest type whose numbers are the weights. An 8-bit float wants a scale, which lies in another
# tensor, and config.json need not speak of it: ModelOpt writes hf_quant_config.json instead.
_FLOAT_BYTES = 2


@dataclass(frozen=True, slots=True)
class Build:
    """Passed down while a model is put together. Every linear registers itself in `sites` as it is built."""

    source: WeightSource
    kernels: Kernels
    mode: LinearMode
    tp: TensorParallel
    sites: list[LoraSite] = field(default_factory=list)
    loaded: set[str] = field(default_factory=set)

    def matrix(self, name: str, shape: tuple[int, int], part: Slice | None = None) -> torch.Tensor:
        """A weight, or this rank's slice of it, in the checkpoint's dtype."""
        weight = self._load(name, shape, part)
        if self.mode == "float16" and weight.dtype != torch.float16:
            low, high = weight.aminmax()
            if max(-low.item(), high.item()) > _FLOAT16_MAX:
                raise ModelError(f"{name} has values beyond float16; use --dtype bfloat16 or float32")
        return weight

    def vector(self, name: str, size: int, part: Slice | None = None) -> torch.Tensor:
        """A norm weight or bias, as the kernels take it."""
        return self.kernels.pack_vector(self._load(name, (size,), part))

    def unused(self) -> list[str]:
        """Tensors of the checkpoint that no layer asked for, but for tables that are computed here."""
        names = set(self.source.names()) - self.loaded
        return sorted(name for name in names if not name.endswith("rotary_emb.inv_freq"))

    def _load(self, name: str, shape: tuple[int, ...], part: Slice | None) -> torch.Tensor:
        found = self.source.shape(name)
        if found != shape:
            raise ModelError(f"{name} has shape {list(found)}, the model's config.json says {list(shape)}")
        self.loaded.add(name)
        weight = self.source.load(name, part)
        if not weight.is_floating_point() or weight.element_size() < _FLOAT_BYTES:
            kind = str(weight.dtype).removeprefix("torch.")
            raise ModelError(f"{name} is stored as {kind}; quantised checkpoints are not supported")
        return weight
