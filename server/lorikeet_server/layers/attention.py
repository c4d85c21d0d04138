"""Self-attention with grouped key/value heads over the paged cache."""

from dataclasses import dataclass

import torch

from lorikeet_server.errors import ModelError
from lorikeet_server.kernels import AttentionLayer, AttentionShape, LoraBatch, Product, StepTensors
from lorikeet_server.layers.build import Build
from lorikeet_server.layers.linear import Part, column_parallel, row_parallel
from lorikeet_server.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Heads:
    """This rank's heads. Ranks beyond the number of key/value heads share one between them."""

    query: range
    key: range
    dim: int

    @classmethod
    def of_rank(cls, config: ModelConfig, rank: int, size: int) -> "Heads":
        heads, kv_heads = config.num_heads, config.num_kv_heads
        if size <= kv_heads:
            # Whole groups of query heads with their key/value head; some ranks get one more if need be.
            key = range(rank * kv_heads // size, (rank + 1) * kv_heads // size)
            group = heads // kv_heads
            return cls(range(key.start * group, key.stop * group), key, config.head_dim)
        if heads % size or size % kv_heads:
            raise ModelError(
                f"{heads} attention heads with {kv_heads} key/value heads "
                f"cannot be divided over {size} shards"
            )
        query, first = heads // size, rank * kv_heads // size
        return cls(range(rank * query, (rank + 1) * query), range(first, first + 1), config.head_dim)

    def shape(self, scale: float, window: int | None, soft_cap: float | None) -> AttentionShape:
        """What the kernels need to know."""
        return AttentionShape(len(self.query), len(self.key), self.dim, scale, window, soft_cap)

    @property
    def query_rows(self) -> range:
        return range(self.query.start * self.dim, self.query.stop * self.dim)

    @property
    def key_rows(self) -> range:
        return range(self.key.start * self.dim, self.key.stop * self.dim)


class Attention:
    """q, k, v in one product, rotation and cache write in one call, then attention over the last `window`
    keys and the output product."""

    def __init__(self, build: Build, prefix: str, config: ModelConfig, window: int | None) -> None:
        self._kernels = build.kernels
        heads = Heads.of_rank(config, build.tp.rank, build.tp.size)
        self.shape = heads.shape(config.attention_scale, window, config.attention_cap)
        self.eps = config.norm_eps
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = [
            Part("q_proj", width, heads.query_rows),
            Part("k_proj", kv_width, heads.key_rows),
            Part("v_proj", kv_width, heads.key_rows),
        ]
        self.qkv = column_parallel(build, prefix, parts, config.hidden_size, bias=config.qkv_bias)
        self.o = row_parallel(
            build, f"{prefix}.o_proj", width, config.hidden_size, heads.query_rows, bias=config.output_bias
        )
        self.q_norm = build.vector(f"{prefix}.q_norm.weight", config.head_dim) if config.head_norms else None
        self.k_norm = build.vector(f"{prefix}.k_norm.weight", config.head_dim) if config.head_norms else None
        self.layer: AttentionLayer | None = None

    def attach(self, k_cache: torch.Tensor, v_cache: torch.Tensor, cos_sin: torch.Tensor) -> None:
        """Gives the layer its cache (the kernels' layout) and the rotary table `[positions, dim]`."""
        self.layer = AttentionLayer(self.shape, k_cache, v_cache, cos_sin)

    def detach(self) -> None:
        """Lets go of the cache and the table."""
        self.layer = None

    def __call__(self, x: torch.Tensor, step: StepTensors, batch: LoraBatch | None) -> Product:
        """`x` `[rows, hidden]` -> `[rows, hidden]`."""
        kernels, layer = self._kernels, self.layer
        assert layer is not None, "attach comes first"
        qkv = self.qkv.product(x, batch)  # [rows, (query + 2 key) * dim]
        if self.q_norm is not None and self.k_norm is not None:
            qkv = Product(qkv.whole())
            self._norm_heads(qkv.y, self.q_norm, self.k_norm)
        kernels.rope_and_cache(qkv, layer, step.positions, step.slot_mapping)
        q = qkv.y[:, : layer.shape.q_width]
        return self.o.product(kernels.paged_attention(q, layer, step.sequences, step.plan), batch)

    def _norm_heads(self, qkv: torch.Tensor, q_norm: torch.Tensor, k_norm: torch.Tensor) -> None:
        """RMS norm of each query and key head, in place."""
        dim, q_end = self.shape.head_dim, self.shape.q_width
        k_end = q_end + self.shape.num_kv_heads * dim
        for columns, weight in ((slice(0, q_end), q_norm), (slice(q_end, k_end), k_norm)):
            part = qkv[:, columns]
            normed = self._kernels.rms_norm(part.reshape(-1, dim), weight, self.eps)
            part.copy_(normed.view(part.shape))
