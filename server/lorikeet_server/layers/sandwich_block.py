"""A decoder layer whose attention and MLP have a norm before and after them, as Gemma 2's do."""

import torch

from lorikeet_server.kernels import DecoderLayer, LoraBatch, StepTensors
from lorikeet_server.layers.attention import Attention
from lorikeet_server.layers.build import Build
from lorikeet_server.layers.mlp import GatedMlp
from lorikeet_server.models.config import ModelConfig


class SandwichBlock:
    """See `Block`, whose place it takes."""

    def __init__(self, build: Build, prefix: str, config: ModelConfig, window: int | None) -> None:
        self._kernels, self._eps = build.kernels, config.norm_eps
        before_attention, after_attention, before_mlp, after_mlp = (
            build.norm(f"{prefix}.{name}_layernorm.weight", config.hidden_size, config.norm_offset)
            for name in ("input", "post_attention", "pre_feedforward", "post_feedforward")
        )
        self._before_attention, self._after_attention = before_attention, after_attention
        self._before_mlp, self._after_mlp = before_mlp, after_mlp
        self.attention = Attention(build, f"{prefix}.self_attn", config, window)
        self.mlp = GatedMlp(build, f"{prefix}.mlp", config)

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None, step: StepTensors, batch: LoraBatch | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`x` `[rows, hidden]` has yet to be added to `residual`; so has what is returned."""
        kernels, eps = self._kernels, self._eps
        if residual is None:
            x, residual = kernels.rms_norm(x, self._before_attention, eps), x
        else:
            x, residual = kernels.add_rms_norm(x, residual, self._before_attention, eps)
        x = kernels.rms_norm(self.attention(x, step, batch), self._after_attention, eps)
        x, residual = kernels.add_rms_norm(x, residual, self._before_mlp, eps)
        return kernels.rms_norm(self.mlp(x, batch), self._after_mlp, eps), residual

    def as_data(self) -> DecoderLayer | None:
        """None: the fused form has no norm after attention or MLP."""
        return None
