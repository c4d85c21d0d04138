"""The gated feed-forward layer."""

import torch

from lorikeet_server.kernels import LoraBatch, Product
from lorikeet_server.layers.build import Build
from lorikeet_server.layers.linear import Part, column_parallel, row_parallel
from lorikeet_server.models.config import ModelConfig


class GatedMlp:
    """`down(act(gate(x)) * up(x))`, gate and up in one product; act is SiLU, or GELU by its tanh form."""

    def __init__(self, build: Build, prefix: str, config: ModelConfig) -> None:
        kernels = build.kernels
        self._activate = kernels.gelu_mul if config.gelu else kernels.silu_mul
        share = build.tp.share(config.intermediate_size)
        parts = [Part(module, config.intermediate_size, share) for module in ("gate_proj", "up_proj")]
        self.gate_up = column_parallel(build, prefix, parts, config.hidden_size, bias=config.mlp_bias)
        self.down = row_parallel(
            build,
            f"{prefix}.down_proj",
            config.intermediate_size,
            config.hidden_size,
            share,
            bias=config.mlp_bias,
        )

    def __call__(self, x: torch.Tensor, batch: LoraBatch | None) -> Product:
        """`x` `[rows, hidden]` -> `[rows, hidden]`."""
        return self.down.product(self._activate(self.gate_up.product(x, batch)), batch)
