"""Every op in plain torch, on any device and in any activation dtype: the definition that other backends are
tested against, and the fallback.

Weights are rounded to their mode and kept in the dtype of activations. Sums over a row of float16 or bfloat16
are taken in float32 and rounded once.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lorikeet_server.device.base import Parcel
from lorikeet_server.device.parcel import Singly
from lorikeet_server.kernels.attention_layer import AttentionLayer
from lorikeet_server.kernels.attention_plan import AttentionPlan
from lorikeet_server.kernels.attention_shape import AttentionShape
from lorikeet_server.kernels.decoder import Decoder, DecoderSpec
from lorikeet_server.kernels.lora_batch import LoraBatch, LoraSegments
from lorikeet_server.kernels.lora_layout import PLAIN, LoraLayout, LoraModule
from lorikeet_server.kernels.lora_tables import LoraTable, LoraTables
from lorikeet_server.kernels.ops import Greedy
from lorikeet_server.kernels.packed_linear import LinearMode, PackedLinear
from lorikeet_server.kernels.product import Product
from lorikeet_server.kernels.reference.attention import Planner, ReferencePlan, attend
from lorikeet_server.kernels.reference.linear import ReferenceLinear, round_weight
from lorikeet_server.kernels.reference.lora_tables import TorchLoraTables
from lorikeet_server.kernels.reference.row_ops import TorchRowOps
from lorikeet_server.kernels.sequence_tables import SequenceTables

CPU = torch.device("cpu")


class ReferenceKernels(TorchRowOps):
    """The reference backend; see `ops.Kernels` for the meaning and shapes of each op."""

    name = "reference"
    own_threads = False

    def __init__(self, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = device, dtype
        self._planner = Planner()

    def captures(self, shapes: Sequence[AttentionShape]) -> bool:
        return False

    def reserve(self, shapes: Sequence[AttentionShape], sequences: int) -> None:
        return None

    def pack_vector(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.dtype)

    def pack_linear(self, weight: Tensor, mode: LinearMode) -> PackedLinear:
        return ReferenceLinear(round_weight(weight, mode).to(self.device, self.dtype).contiguous(), mode)

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        assert isinstance(packed, ReferenceLinear)
        return F.linear(x, packed.weight)

    def adapted_linear(
        self, x: Tensor, packed: PackedLinear, table: LoraTable, batch: LoraBatch
    ) -> Product | None:
        return None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        return F.rms_norm(x.float(), weight.shape, weight.float() + offset, eps).to(x.dtype)

    def add_rms_norm(
        self, x: Product, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        residual = x.whole() + residual
        return self.rms_norm(residual, weight, eps, offset), residual

    def silu_mul(self, gate_up: Product) -> Tensor:
        both = gate_up.whole()
        gate, up = both.float().chunk(2, dim=-1)
        return (F.silu(gate) * up).to(both.dtype)

    def gelu_mul(self, gate_up: Product) -> Tensor:
        both = gate_up.whole()
        gate, up = both.float().chunk(2, dim=-1)
        return (F.gelu(gate, approximate="tanh") * up).to(both.dtype)

    def kv_dtype(self, mode: LinearMode, *, quantised: bool) -> torch.dtype:
        return self.dtype

    def kv_layout(
        self, num_blocks: int, block_size: int, kv_heads: int, head_dim: int, kv_dtype: torch.dtype
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shape = (num_blocks + 1, block_size, kv_heads, head_dim)
        return shape, shape

    def spare_place(self, num_blocks: int, block_size: int) -> int:
        return num_blocks * block_size

    def rope_and_cache(
        self, qkv: Product, layer: AttentionLayer, positions: Tensor, slot_mapping: Tensor
    ) -> None:
        rows = qkv.whole()
        self.rotate(rows, layer, positions)
        shape = layer.shape
        heads = rows.view(rows.shape[0], -1, shape.head_dim)  # [T, H + 2K, D]
        k_v = heads[:, shape.num_heads :].chunk(2, dim=1)
        for cache, new in zip((layer.k_cache, layer.v_cache), k_v, strict=True):
            cache.view(-1, *cache.shape[2:])[slot_mapping] = new.to(cache.dtype)

    def rotate(self, qkv: Tensor, layer: AttentionLayer, positions: Tensor) -> None:
        """The first half of `rope_and_cache`."""
        shape = layer.shape
        rotating = shape.num_heads + shape.num_kv_heads
        heads = qkv.view(qkv.shape[0], -1, shape.head_dim)[:, :rotating]
        cos, sin = layer.cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)  # [T, 1, D / 2]
        first, second = heads.chunk(2, dim=-1)
        heads.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))

    def plan(
        self,
        sequences: SequenceTables,
        shapes: Sequence[AttentionShape],
        block_size: int,
        parcel: Parcel,
        *,
        fixed: bool = False,
    ) -> AttentionPlan | None:
        return self._planner(sequences, parcel, fixed)

    def paged_attention(
        self, q: Tensor, layer: AttentionLayer, sequences: SequenceTables, plan: AttentionPlan | None = None
    ) -> Tensor:
        if plan is None:
            plan = self._planner(sequences, Singly(self.device), fixed=False)
        assert isinstance(plan, ReferencePlan)
        return attend(q, layer, plan)

    @property
    def lora_layout(self) -> LoraLayout:
        return PLAIN

    def lora_tables(
        self, modules: Sequence[LoraModule], num_slots: int, max_rows: int, max_rank: int, dtype: torch.dtype
    ) -> LoraTables:
        del max_rows, max_rank  # nothing is needed ahead
        return TorchLoraTables(modules, num_slots, dtype, self.device)

    def lora(self, y: Tensor, x: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        assert isinstance(batch, LoraSegments)
        starts = batch.segment_starts.tolist()
        columns = torch.split(y, list(table.out_features), dim=1)
        for i, slot in enumerate(batch.segment_slots.tolist()):
            rows = batch.permutation[starts[i] : starts[i + 1]]
            for slice_index, target in enumerate(columns):
                if (entry := table.get(slot, slice_index)) is None:
                    continue
                a, b, scale, channel_scale = entry
                product = F.linear(F.linear(x[rows], a.to(x.dtype)), b.to(x.dtype)).float()
                added = target[rows].float() + scale * product
                target[rows] = (added if channel_scale is None else added * channel_scale).to(y.dtype)

    def greedy(self, logits: Tensor) -> Greedy:
        largest = logits.amax(dim=-1, keepdim=True)
        index = torch.arange(logits.shape[1], device=logits.device).where(logits == largest, logits.shape[1])
        logsumexp = logits.logsumexp(dim=-1)
        return Greedy(
            index.amin(dim=-1).clamp(max=logits.shape[1] - 1), largest.squeeze(-1) - logsumexp, logsumexp
        )

    def decoder(self, spec: DecoderSpec) -> Decoder | None:
        return None
