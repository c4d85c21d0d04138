"""The interface between layers and kernels: every op with its shapes, and nothing about how it is computed.

Letters: T rows (tokens) of the step, S sequences, H query heads, K key/value heads, D head width, V
vocabulary, I width of the feed-forward layer. Tensors are row-major, contiguous and on the backend's device,
unless said otherwise. "act" is the backend's activation dtype, float32 on a CPU: a row enters and leaves each
op in it, and sums, norms, rotations and softmax are computed in float32. An op raises `ValueError` or
`TypeError` for a wrong shape or dtype before it touches memory, and waits for nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lorikeet_server.device.base import Parcel
from lorikeet_server.kernels.attention_layer import AttentionLayer
from lorikeet_server.kernels.attention_plan import AttentionPlan
from lorikeet_server.kernels.attention_shape import AttentionShape
from lorikeet_server.kernels.decoder import Decoder, DecoderSpec
from lorikeet_server.kernels.lora_batch import LoraBatch
from lorikeet_server.kernels.lora_layout import LoraLayout, LoraModule
from lorikeet_server.kernels.lora_tables import LoraTable, LoraTables
from lorikeet_server.kernels.packed_linear import LinearMode, PackedLinear
from lorikeet_server.kernels.product import Product
from lorikeet_server.kernels.row_ops import RowOps
from lorikeet_server.kernels.sequence_tables import SequenceTables


class Greedy(NamedTuple):
    """What one pass over the logits yields, per row."""

    tokens: Tensor  # i64 [T], the lowest index of the largest logit
    logprobs: Tensor  # f32 [T], the log-probability of that token
    logsumexp: (
        Tensor  # f32 [T]; log-probability of any token v is logits[:, v] - logsumexp. Not finite = bad row
    )


class Kernels(RowOps, Protocol):
    """One backend. Stateless but for caches, so one instance serves the whole process."""

    @property
    def name(self) -> str:
        """Short name and variant, for logs (`reference`, `cpu-avx512`)."""

    @property
    def own_threads(self) -> bool:
        """Whether ops run on threads of the backend's own, and not on torch's."""

    @property
    def device(self) -> torch.device:
        """Where the tensors of every op live."""

    @property
    def dtype(self) -> torch.dtype:
        """act: the dtype of activations, norm weights, biases and of the key/value cache."""

    def captures(self, shapes: Sequence[AttentionShape]) -> bool:
        """Whether the ops of a step that is planned `fixed` may be captured once and replayed: they read
        everything that differs between steps from device memory, at addresses that stay."""

    def reserve(self, shapes: Sequence[AttentionShape], sequences: int) -> None:
        """Sets aside what attention needs beside its arguments, for steps of which up to `sequences` decodes
        are planned `fixed`: to be called before the first `plan`. What was captured for fewer must not be
        replayed afterwards."""

    def pack_vector(self, values: Tensor) -> Tensor:
        """A norm weight or a bias [n] as the ops take it: act, on the device."""

    def pack_linear(self, weight: Tensor, mode: LinearMode) -> PackedLinear:
        """Repack `weight` [out, in] (f32, f16 or bf16). `float32` is exact; the others round the weight once.

        Sums are accumulated in float32 in every mode. The argument may be freed afterwards.
        """

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """`x` act [T, in] -> act [T, out]."""

    def adapted_linear(
        self, x: Tensor, packed: PackedLinear, table: LoraTable, batch: LoraBatch
    ) -> Product | None:
        """What `linear`, and `lora` on what it gives, come to, where there is a better way than one after the
        other; else None, and nothing was computed."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        """`x` act [T, n], times `offset` + `weight` act [n], added in float32 -> act [T, n]. Rows may also be
        heads: [T * heads, D]."""

    def add_rms_norm(
        self, x: Product, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """`(rms_norm(x + residual), x + residual)`; either argument may be overwritten and returned."""

    def silu_mul(self, gate_up: Product) -> Tensor:
        """`gate_up` act [T, 2I], gate first -> `silu(gate) * up`, act [T, I]."""

    def gelu_mul(self, gate_up: Product) -> Tensor:
        """As `silu_mul`, with the tanh approximation of GELU."""

    def kv_dtype(self, mode: LinearMode, *, quantised: bool) -> torch.dtype:
        """Of keys and values for a model in `mode`; `quantised` far below 16 bits in its file."""

    def kv_layout(
        self, num_blocks: int, block_size: int, kv_heads: int, head_dim: int, kv_dtype: torch.dtype
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the key and the value cache of one layer.

        Dimension 0 is the block, so whole blocks can be copied; there may be one more than asked for, the
        spare that `spare_place` names. Within a block the order is the backend's own. `kv_dtype` is f32, f16
        or bf16, on a CPU also int16: integers with scales. Allocate with `torch.zeros`.
        """

    def spare_place(self, num_blocks: int, block_size: int) -> int:
        """The entry of `slot_mapping` for a row whose key and value no sequence may ever see."""

    def rope_and_cache(
        self, qkv: Product, layer: AttentionLayer, positions: Tensor, slot_mapping: Tensor
    ) -> None:
        """Rotate q and k inside `qkv` act [T, (H + 2K) * D] in place, and write k and v to the cache.

        `positions` i64 [T]. `slot_mapping` i64 [T] is block * block_size + offset, or `spare_place`.
        """

    def plan(
        self,
        sequences: SequenceTables,
        shapes: Sequence[AttentionShape],
        block_size: int,
        parcel: Parcel,
        *,
        fixed: bool = False,
    ) -> AttentionPlan | None:
        """Prepare a step's attention, once for all layers, whose shapes are `shapes`, each named once.

        What the ops read of it is on the device once `parcel` has been sent. `fixed`: every sequence has one
        query, and steps with as many sequences, planned at the same place of their parcels, share one place
        in device memory, so that captured ops find the newest plan there; the first such plan has the widest
        tables. None: there is nothing to prepare.
        """

    def paged_attention(
        self, q: Tensor, layer: AttentionLayer, sequences: SequenceTables, plan: AttentionPlan | None = None
    ) -> Tensor:
        """Causal attention of each sequence over its own cache -> act [T, H * D].

        `q` act [T, H * D], rows may be strided (the leading columns of `qkv`). `plan` is what `plan` made of
        the same sequences; without one it is made on the spot.
        """

    @property
    def lora_layout(self) -> LoraLayout:
        """How adapters are to be staged for this backend."""

    def lora_tables(
        self, modules: Sequence[LoraModule], num_slots: int, max_rows: int, max_rank: int, dtype: torch.dtype
    ) -> LoraTables:
        """Empty tables over all modules of a model for adapters of `dtype` and at most `max_rank`, and
        whatever steps of at most `max_rows` rows need."""

    def lora(self, y: Tensor, x: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        """Add the adapters' products to `y` act [T, sum(out)] in place; `x` act [T, in].

        For each slice with columns c of y, and each row of a segment with slot s: `y[c] = g * (y[c] + scale *
        (x A^T) B^T)`, where g is 1 without DoRA. `y` must not contain the layer's bias yet. Rows outside
        every segment and slots without that slice are left untouched.
        """

    def greedy(self, logits: Tensor) -> Greedy:
        """`logits` f32 [T, V]. A row with NaN or +inf, or -inf only, gives a logsumexp that is not finite."""

    def decoder(self, spec: DecoderSpec) -> Decoder | None:
        """All layers as one call on one rank, or None where the backend has no faster way than op by op."""
