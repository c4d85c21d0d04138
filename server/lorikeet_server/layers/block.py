"""One decoder layer, and the same layer as data for a backend that runs the whole stack in one call."""

import torch

from lorikeet_server.kernels import DecoderLayer, LoraBatch, StepTensors
from lorikeet_server.layers.attention import Attention
from lorikeet_server.layers.build import Build
from lorikeet_server.layers.mlp import GatedMlp
from lorikeet_server.models.config import ModelConfig


class Block:
    """Pre-norm attention and MLP, each adding to the residual stream."""

    def __init__(self, build: Build, prefix: str, config: ModelConfig, window: int | None) -> None:
        self._kernels, self._eps = build.kernels, config.norm_eps
        self._input_norm = build.norm(
            f"{prefix}.input_layernorm.weight", config.hidden_size, config.norm_offset
        )
        self._post_norm = build.norm(
            f"{prefix}.post_attention_layernorm.weight", config.hidden_size, config.norm_offset
        )
        self.attention = Attention(build, f"{prefix}.self_attn", config, window)
        self.mlp = GatedMlp(build, f"{prefix}.mlp", config)

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None, step: StepTensors, batch: LoraBatch | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`x` `[rows, hidden]` has yet to be added to `residual`; so has what is returned."""
        kernels, eps = self._kernels, self._eps
        if residual is None:
            x, residual = kernels.rms_norm(x, self._input_norm, eps), x
        else:
            x, residual = kernels.add_rms_norm(x, residual, self._input_norm, eps)
        x = self.attention(x, step, batch)
        x, residual = kernels.add_rms_norm(x, residual, self._post_norm, eps)
        return self.mlp(x, batch), residual

    def as_data(self) -> DecoderLayer | None:
        """None before the cache is attached, and where the layer has a part that the fused form does not: a
        bias after o, gate, up or down."""
        attention, mlp = self.attention, self.mlp
        if (
            attention.layer is None
            or attention.o.bias is not None
            or mlp.gate_up.bias is not None
            or mlp.down.bias is not None
        ):
            return None
        return DecoderLayer(
            input_norm=self._input_norm,
            qkv=attention.qkv.packed,
            o=attention.o.packed,
            post_norm=self._post_norm,
            gate_up=mlp.gate_up.packed,
            down=mlp.down.packed,
            attention=attention.layer,
            qkv_bias=attention.qkv.bias,
            q_norm=attention.q_norm,
            k_norm=attention.k_norm,
            qkv_lora=attention.qkv.site.table,
            o_lora=attention.o.site.table,
            gate_up_lora=mlp.gate_up.site.table,
            down_lora=mlp.down.site.table,
        )
