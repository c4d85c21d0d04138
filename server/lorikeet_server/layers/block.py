"""One decoder layer, and the same layer as data for a backend that runs the whole stack in one call."""

import torch

from lorikeet_server.kernels import DecoderLayer, LoraBatch, Product, StepTensors
from lorikeet_server.layers.attention import Attention
from lorikeet_server.layers.build import Build
from lorikeet_server.layers.mlp import GatedMlp
from lorikeet_server.models.config import ModelConfig


class Block:
    """Attention and MLP, each behind a norm and adding to the residual stream. In some families what they add
    passes a norm too."""

    def __init__(self, build: Build, prefix: str, config: ModelConfig, window: int | None) -> None:
        def norm(name: str) -> torch.Tensor:
            return build.vector(f"{prefix}.{name}_layernorm.weight", config.hidden_size)

        self._kernels, self._eps, self._offset = build.kernels, config.norm_eps, config.norm_offset
        self._before_attention = norm("input")
        self._after_attention = self._after_mlp = None
        if config.sandwich_norms:
            self._after_attention, self._before_mlp = norm("post_attention"), norm("pre_feedforward")
            self._after_mlp = norm("post_feedforward")
        else:
            self._before_mlp = norm("post_attention")
        self.attention = Attention(build, f"{prefix}.self_attn", config, window)
        self.mlp = GatedMlp(build, f"{prefix}.mlp", config)

    def __call__(
        self, added: Product, residual: torch.Tensor | None, step: StepTensors, batch: LoraBatch | None
    ) -> tuple[Product, torch.Tensor]:
        """`added` `[rows, hidden]` has yet to be added to `residual`; so has what is returned."""
        kernels, scale = self._kernels, (self._eps, self._offset)
        if residual is None:
            residual = added.whole()
            x = kernels.rms_norm(residual, self._before_attention, *scale)
        else:
            x, residual = kernels.add_rms_norm(added, residual, self._before_attention, *scale)
        added = self._normed(self.attention(x, step, batch), self._after_attention)
        x, residual = kernels.add_rms_norm(added, residual, self._before_mlp, *scale)
        return self._normed(self.mlp(x, batch), self._after_mlp), residual

    def _normed(self, added: Product, weight: torch.Tensor | None) -> Product:
        if weight is None:
            return added
        return Product(self._kernels.rms_norm(added.whole(), weight, self._eps, self._offset))

    def as_data(self) -> DecoderLayer | None:
        """None before the cache is attached, and where the layer has a part that the fused form does not: a
        norm after attention or MLP, an offset of norms, or a bias after o, gate, up or down."""
        attention, mlp = self.attention, self.mlp
        if (
            attention.layer is None
            or self._after_attention is not None
            or self._offset
            or attention.o.bias is not None
            or mlp.gate_up.bias is not None
            or mlp.down.bias is not None
        ):
            return None
        return DecoderLayer(
            input_norm=self._before_attention,
            qkv=attention.qkv.packed,
            o=attention.o.packed,
            post_norm=self._before_mlp,
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
