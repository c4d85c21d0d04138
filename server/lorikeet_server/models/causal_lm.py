"""A decoder-only language model on one rank: embedding, blocks, final norm, lm_head."""

import torch

from lorikeet_server.adapters.targets import LoraTarget
from lorikeet_server.kernels import (
    AttentionShape,
    Decoder,
    DecoderSpec,
    LoraBatch,
    LoraTables,
    Product,
    StepTensors,
)
from lorikeet_server.kvcache.pool import KvPool
from lorikeet_server.layers.block import Block
from lorikeet_server.layers.build import Build
from lorikeet_server.layers.embedding import Embedding, LmHead
from lorikeet_server.layers.rotary import cos_sin_table
from lorikeet_server.models.config import ModelConfig


class CausalLM:
    """Weights are read and packed on construction; caches and adapter tables come with `prepare`."""

    def __init__(self, config: ModelConfig, build: Build) -> None:
        self.config = config
        self._kernels, self._tp, self._sites = build.kernels, build.tp, build.sites
        self._dtype = getattr(torch, build.mode)  # of weights, and of adapters
        embedding, head = _embedding_names(build, config.tied)
        self.embedding_weights = {"model.embed_tokens": embedding, "lm_head": head}
        sizes = config.vocab_size, config.hidden_size
        self._embedding = Embedding(build, embedding, *sizes, config.embedding_scale)
        self._blocks = [
            Block(build, f"model.layers.{i}", config, window) for i, window in enumerate(config.windows)
        ]
        self._shapes = tuple(dict.fromkeys(block.attention.shape for block in self._blocks))
        self._norm = build.vector("model.norm.weight", config.hidden_size)
        self._lm_head = LmHead(build, head, *sizes, config.logit_cap)
        self._fused: Decoder | None = None
        self._adapters: LoraTables | None = None

    @property
    def kv_heads(self) -> int:
        """Key/value heads on this rank."""
        return self._blocks[0].attention.shape.num_kv_heads

    @property
    def attention_shapes(self) -> tuple[AttentionShape, ...]:
        """What a step's attention is planned from: the shape of every layer, each named once."""
        return self._shapes

    def lora_targets(self) -> list[LoraTarget]:
        """Every linear module that an adapter may target, found where the linears were built, in the order of
        the slices of `adapters`."""
        return [target for site in self._sites for target in site.targets]

    @property
    def adapters(self) -> LoraTables | None:
        """The adapter tables of all linears; None before `prepare`, and without adapter slots."""
        return self._adapters

    def prepare(
        self, pool: KvPool, adapter_slots: int, max_positions: int, max_rows: int, max_rank: int
    ) -> None:
        """Attaches the cache, empty adapter tables and rotary tables, replacing any earlier ones. A step has
        at most `max_rows` rows, an adapter at most `max_rank`."""
        self.release()
        config = self.config
        cos_sin = cos_sin_table(config.rope, config.head_dim, max_positions).to(self._kernels.device)
        if adapter_slots:
            modules = [site.module for site in self._sites]
            sizes = adapter_slots, max_rows, max_rank
            self._adapters = self._kernels.lora_tables(modules, *sizes, self._dtype)
            for site, table in zip(self._sites, self._adapters.tables, strict=True):
                site.table = table
        for block, k_cache, v_cache in zip(self._blocks, pool.keys, pool.values, strict=True):
            block.attention.attach(k_cache, v_cache, cos_sin)
        self._fused = self._fuse()

    def release(self) -> None:
        """Lets go of what `prepare` attached, so that another size can be allocated."""
        self._fused = self._adapters = None
        for site in self._sites:
            site.table = None
        for block in self._blocks:
            block.attention.detach()

    def forward(self, tokens: torch.Tensor, step: StepTensors, batch: LoraBatch | None) -> torch.Tensor:
        """`tokens` `[rows]` int64 -> hidden states `[rows, hidden]` after the final norm."""
        x = self._embedding(tokens)
        if self._fused is not None:
            return self._fused(x, step, batch)
        added = Product(x)
        residual: torch.Tensor | None = None
        for block in self._blocks:
            added, residual = block(added, residual, step, batch)
        assert residual is not None
        scale = self.config.norm_eps, self.config.norm_offset
        return self._kernels.add_rms_norm(added, residual, self._norm, *scale)[0]

    def logits(
        self, hidden: torch.Tensor, batch: LoraBatch | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`hidden` `[rows, hidden]` from `forward` -> `[rows, vocab]` float32, in `out` if given."""
        return self._lm_head(hidden, batch, out)

    def _fuse(self) -> Decoder | None:
        """The blocks as one call, where the backend and the family allow it. Ranks must meet between the
        ops."""
        layers = [block.as_data() for block in self._blocks]
        if self._tp.size > 1:
            return None
        known = tuple(layer for layer in layers if layer is not None)
        if len(known) < len(layers):
            return None
        return self._kernels.decoder(DecoderSpec(known, self._norm, self.config.norm_eps))


def _embedding_names(build: Build, tied: bool) -> tuple[str, str]:
    """The tensors of the embedding and of lm_head. If they are tied, either stands for both; a checkpoint
    that holds both has its way, as in transformers, which ties them only if they are equal."""
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    held = build.source.names() if tied else (embedding, head)
    return (embedding if embedding in held else head, head if head in held else embedding)
