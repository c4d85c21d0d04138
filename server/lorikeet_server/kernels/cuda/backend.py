"""The CUDA backend: base products by cuBLAS; adapters, rotation and cache writes by kernels of our own;
attention and row ops by FlashInfer.

What cannot be had on this machine is computed by torch instead: correct, slower, and said once in the log.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from lorikeet_server.device.base import Parcel
from lorikeet_server.device.parcel import Singly
from lorikeet_server.kernels.attention_layer import AttentionLayer
from lorikeet_server.kernels.attention_plan import AttentionPlan
from lorikeet_server.kernels.attention_shape import AttentionShape
from lorikeet_server.kernels.cuda import abi
from lorikeet_server.kernels.cuda.after_product import AfterProduct
from lorikeet_server.kernels.cuda.attention import FlashInferAttention, FlashInferPlan
from lorikeet_server.kernels.cuda.beside import Beside
from lorikeet_server.kernels.cuda.beside_base import BesideBase
from lorikeet_server.kernels.cuda.flashinfer_library import open_flashinfer
from lorikeet_server.kernels.cuda.launches import why_not
from lorikeet_server.kernels.cuda.library import open_library
from lorikeet_server.kernels.cuda.rope_and_cache import RopeAndCache
from lorikeet_server.kernels.cuda.sgmv import Sgmv
from lorikeet_server.kernels.cuda.tables import LAYOUT, DeviceLoraTables
from lorikeet_server.kernels.cuda.tiles import LoraTiles
from lorikeet_server.kernels.lora_batch import LoraBatch
from lorikeet_server.kernels.lora_layout import PLAIN, LoraLayout, LoraModule
from lorikeet_server.kernels.lora_tables import LoraTable, LoraTables
from lorikeet_server.kernels.packed_linear import PackedLinear
from lorikeet_server.kernels.product import Product
from lorikeet_server.kernels.reference.backend import ReferenceKernels
from lorikeet_server.kernels.sequence_tables import SequenceTables

log = logging.getLogger(__name__)

VECTOR_BYTES = 16  # that FlashInfer's row kernels read at once
RADIX_VOCABULARY = 2048  # below, FlashInfer looks for top-p's cut in a loop that a row of NaN would not leave


class CudaKernels(ReferenceKernels):
    """See `ops.Kernels`. Weights are torch tensors, so base products are `F.linear` as in the reference."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        if str(device) == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())  # tensors on it have a number
        super().__init__(device, dtype)
        # By default torch lets cuBLAS add up the parts of a split sum in 16 bits.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        major, minor = torch.cuda.get_device_capability(device)
        self.name = f"cuda-sm{major}{minor}"
        self._library, self._sgmv, self._rope_and_cache, self._flashinfer = None, None, None, None
        self._after_product, self._beside_base = None, None
        if reason := why_not((major, minor), dtype):
            log.warning("no CUDA kernels, torch takes their place, far slower: %s", reason)
            return
        try:
            self._library = open_library(device)
            self._sgmv = Sgmv(self._library, device)
            self._rope_and_cache = RopeAndCache(self._library, device)
            self._after_product = AfterProduct(self._library, device)
            self._beside_base = BesideBase(self._sgmv, Beside(device))
        except (OSError, RuntimeError) as error:
            log.warning(
                "no CUDA kernels for adapters and caches, torch takes their place, far slower: %s", error
            )
        self._flashinfer = open_flashinfer(device, dtype)
        if self._flashinfer is not None:
            processors = torch.cuda.get_device_properties(device).multi_processor_count
            self._attention = FlashInferAttention(self._flashinfer, device, dtype, processors)
            self.name += "-flashinfer"

    def captures(self, shapes: Sequence[AttentionShape]) -> bool:
        return self._sgmv is not None and self._attends(shapes)

    def reserve(self, shapes: Sequence[AttentionShape], sequences: int) -> None:
        if self._attends(shapes):
            self._attention.reserve(shapes, sequences)

    def adapted_linear(
        self, x: Tensor, packed: PackedLinear, table: LoraTable, batch: LoraBatch
    ) -> Product | None:
        return None if self._beside_base is None else self._beside_base(x, packed, table, batch)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        if self._flashinfer is None or not self._norms(x, offset):
            return super().rms_norm(x, weight, eps, offset)
        norm = self._flashinfer.norm
        normed: Tensor = (norm.gemma_rmsnorm if offset else norm.rmsnorm)(x, weight, eps)
        return normed

    def add_rms_norm(
        self, x: Product, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        if x.delta is not None and self._after_product is not None and self._after_product.norms(x.y):
            self._after_product.add_norm(x.y, x.delta, residual, weight, eps, offset)
            return x.y, residual
        if self._flashinfer is None or not self._norms(x.y, offset):
            return super().add_rms_norm(x, residual, weight, eps, offset)
        norm, rows = self._flashinfer.norm, x.whole()
        (norm.gemma_fused_add_rmsnorm if offset else norm.fused_add_rmsnorm)(rows, residual, weight, eps)
        return rows, residual

    def silu_mul(self, gate_up: Product) -> Tensor:
        gated = self._gated(gate_up, abi.SILU, "silu_and_mul")
        return super().silu_mul(gate_up) if gated is None else gated

    def gelu_mul(self, gate_up: Product) -> Tensor:
        gated = self._gated(gate_up, abi.GELU, "gelu_tanh_and_mul")
        return super().gelu_mul(gate_up) if gated is None else gated

    def rope_and_cache(
        self, qkv: Product, layer: AttentionLayer, positions: Tensor, slot_mapping: Tensor
    ) -> None:
        if self._rope_and_cache is not None and self._rope_and_cache.supports(layer, self.dtype):
            self._rope_and_cache(qkv, layer, positions, slot_mapping)
        else:
            super().rope_and_cache(qkv, layer, positions, slot_mapping)

    def plan(
        self,
        sequences: SequenceTables,
        shapes: Sequence[AttentionShape],
        block_size: int,
        parcel: Parcel,
        *,
        fixed: bool = False,
    ) -> AttentionPlan | None:
        if not self._attends(shapes):
            return super().plan(sequences, shapes, block_size, parcel, fixed=fixed)
        return self._attention.plan(sequences, shapes, block_size, parcel, fixed)

    def paged_attention(
        self, q: Tensor, layer: AttentionLayer, sequences: SequenceTables, plan: AttentionPlan | None = None
    ) -> Tensor:
        if plan is None:
            self.reserve((layer.shape,), 0)
            plan = self.plan(sequences, (layer.shape,), layer.k_cache.shape[1], Singly(self.device))
        if isinstance(plan, FlashInferPlan):
            return plan.attend(q, layer)
        return super().paged_attention(q, layer, sequences, plan)

    @property
    def lora_layout(self) -> LoraLayout:
        return LAYOUT if self._sgmv is not None else PLAIN

    def lora_tables(
        self, modules: Sequence[LoraModule], num_slots: int, max_rows: int, max_rank: int, dtype: torch.dtype
    ) -> LoraTables:
        if self._library is None:
            return super().lora_tables(modules, num_slots, max_rows, max_rank, dtype)
        sizes = num_slots, max_rows, dtype, self.device, max_rank
        return DeviceLoraTables(self._library, modules, *sizes)

    def lora(self, y: Tensor, x: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        if self._sgmv is not None and isinstance(batch, LoraTiles):
            self._sgmv(y, x, table, batch)
        else:
            super().lora(y, x, table, batch)

    def keep_top_p(self, weights: Tensor, top_p: Tensor) -> Tensor:
        if self._flashinfer is None or weights.shape[1] < RADIX_VOCABULARY:
            return super().keep_top_p(weights, top_p)
        # In double precision, whose sums do not depend on their order; FlashInfer's are of integers then.
        probability = weights * (1 / weights.sum(-1, dtype=torch.float64)).float().unsqueeze(-1)
        renormalise = self._flashinfer.sampling.top_p_renorm_probs
        kept: Tensor = renormalise(probability, top_p, is_deterministic=True)
        return kept

    def _attends(self, shapes: Sequence[AttentionShape]) -> bool:
        return self._flashinfer is not None and all(map(FlashInferAttention.supports, shapes))

    def _gated(self, gate_up: Product, ours: int, theirs: str) -> Tensor | None:
        """By our kernel, which adds a delta, or FlashInfer's; None if neither has such rows."""
        y, delta = gate_up
        if delta is not None and self._after_product is not None and self._after_product.gates(y):
            return self._after_product.gated(y, delta, ours)
        if self._flashinfer is None or not self._vectors(y.shape[1] // 2) or not y.numel():
            return None
        gated: Tensor = getattr(self._flashinfer.activation, theirs)(gate_up.whole())
        return gated

    def _norms(self, x: Tensor, offset: float) -> bool:
        """Whether FlashInfer does; it knows no other offset than Gemma's."""
        return offset in (0.0, 1.0) and self._vectors(x.shape[1]) and x.numel() > 0

    def _vectors(self, width: int) -> bool:
        return width * self.dtype.itemsize % VECTOR_BYTES == 0
