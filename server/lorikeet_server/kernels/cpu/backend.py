"""The C++ backend: allocates results and hands pointers to the library."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorikeet_server.kernels.attention_layer import AttentionLayer
from lorikeet_server.kernels.attention_plan import AttentionPlan
from lorikeet_server.kernels.cpu import abi, build
from lorikeet_server.kernels.cpu.decoder import CpuDecoder
from lorikeet_server.kernels.cpu.host_ops import HostOps
from lorikeet_server.kernels.cpu.native import (
    BLOCK_STORAGES,
    INSTRUCTION_SETS,
    STORAGES,
    CpuLinear,
    check,
    kv_shapes,
    native_attention,
    native_batch,
    native_places,
    native_sequences,
    native_table,
    open_isa,
    packed_linear,
    raise_for,
)
from lorikeet_server.kernels.cpu.row_ops import CpuRowOps
from lorikeet_server.kernels.cpu.slab import Slabs
from lorikeet_server.kernels.decoder import Decoder, DecoderSpec
from lorikeet_server.kernels.lora_batch import LoraBatch
from lorikeet_server.kernels.lora_layout import LoraLayout, LoraModule
from lorikeet_server.kernels.lora_tables import LoraTable, LoraTables
from lorikeet_server.kernels.ops import Greedy
from lorikeet_server.kernels.packed_linear import LinearMode, PackedLinear
from lorikeet_server.kernels.product import Product
from lorikeet_server.kernels.reference.linear import round_weight
from lorikeet_server.kernels.sequence_tables import SequenceTables


class CpuKernels(CpuRowOps, HostOps):
    """See `ops.Kernels`. One instance drives one instruction set; all share one pool of threads."""

    def __init__(self, isa: str = "auto") -> None:
        if isa not in ("auto", *INSTRUCTION_SETS):
            raise ValueError(f"unknown instruction set {isa!r}, known: auto, {', '.join(INSTRUCTION_SETS)}")
        self.library = abi.load(build.library())
        self.isa, self.handle = open_isa(self.library, isa)
        self.library.lk_set_threads(torch.get_num_threads())
        self.name = f"cpu-{self.isa}"
        self.lora_layout = LoraLayout(panel=self.library.lk_panel(self.handle))
        self._slabs = Slabs()

    def pack_linear(self, weight: Tensor, mode: LinearMode) -> PackedLinear:
        """As the interface says, but what a file held in blocks of 4 or 8 bits is kept so, unrounded.

        That takes a third to a fifth of the memory traffic. In mode `float32` products have the bits of
        float32; in the others x becomes 16-bit integers first, with a scale for each 32 (`tile/integers.h`).
        """
        if weight.dtype is torch.float32 and weight.dim() == 2:
            weight = weight.contiguous()
            for storage in BLOCK_STORAGES:
                code = STORAGES.index(storage)
                trial = torch.empty(self._packed_bytes(weight, code), dtype=torch.uint8)
                arguments = (weight.data_ptr(), *weight.shape, code, trial.data_ptr())
                if self.library.lk_pack_blocks(self.handle, *arguments):
                    data = self._slabs.take(trial.shape[0]).copy_(trial)
                    return packed_linear(data, weight, code, mode)
        weight = round_weight(weight, mode).contiguous()
        code = STORAGES.index(mode)
        data = self._slabs.take(self._packed_bytes(weight, code))
        self.library.lk_pack_linear(self.handle, weight.data_ptr(), *weight.shape, code, data.data_ptr())
        return packed_linear(data, weight, code, mode)

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        if not isinstance(packed, CpuLinear):
            raise TypeError(f"expected a weight packed by this backend, not {type(packed).__name__}")
        check(x, "x", (None, packed.in_features))
        y = torch.empty(x.shape[0], packed.out_features)
        self.library.lk_linear(self.handle, x.data_ptr(), x.shape[0], packed.native, y.data_ptr())
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        check(weight, "weight", (None,))
        check(x, "x", (None, weight.shape[0]))
        return self._rms_norm(x, None, weight, eps, offset)

    def add_rms_norm(
        self, x: Product, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        rows = x.whole()
        check(weight, "weight", (None,))
        check(rows, "x", (None, weight.shape[0]))
        check(residual, "residual", rows.shape)
        return self._rms_norm(rows, residual.data_ptr(), weight, eps, offset), residual

    def silu_mul(self, gate_up: Product) -> Tensor:
        both = gate_up.whole()
        check(both, "gate_up", (None, None))
        rows, width = both.shape
        if width % 2:
            raise ValueError(f"gate_up must have an even width, not {width}")
        out = torch.empty(rows, width // 2)
        self.library.lk_silu_mul(self.handle, both.data_ptr(), rows, width // 2, out.data_ptr())
        return out

    def kv_dtype(self, mode: LinearMode, *, quantised: bool) -> torch.dtype:
        """As they are computed, in float32; but where the rows that meet the weights are rounded to 16-bit
        integers, so are keys and values, which halves the traffic of attention."""
        return torch.int16 if quantised and mode == "float16" else torch.float32

    def kv_layout(
        self, num_blocks: int, block_size: int, kv_heads: int, head_dim: int, kv_dtype: torch.dtype
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return kv_shapes(num_blocks, block_size, kv_heads, head_dim, kv_dtype)

    def rope_and_cache(
        self, qkv: Product, layer: AttentionLayer, positions: Tensor, slot_mapping: Tensor
    ) -> None:
        rows = qkv.whole()
        check(rows, "qkv", (None, layer.shape.qkv_width))
        count = rows.shape[0]
        native = native_places(positions, slot_mapping, count), native_attention(layer)
        raise_for(self.library.lk_rope_and_cache(self.handle, rows.data_ptr(), count, *native))

    def paged_attention(
        self, q: Tensor, layer: AttentionLayer, sequences: SequenceTables, plan: AttentionPlan | None = None
    ) -> Tensor:
        width = layer.shape.q_width
        if q.dtype != torch.float32:
            raise TypeError(f"q must be torch.float32, not {q.dtype}")
        if q.dim() != 2 or q.shape[1] != width or (q.numel() and q.stride(1) != 1):
            raise ValueError(f"q must be [rows, {width}], not {list(q.shape)}")
        native, out = (native_attention(layer), native_sequences(sequences)), torch.empty(q.shape)
        rows = q.data_ptr(), q.stride(0), q.shape[0]
        raise_for(self.library.lk_attention(self.handle, *rows, *native, out.data_ptr()))
        return out

    def lora_tables(
        self, modules: Sequence[LoraModule], num_slots: int, max_rows: int, max_rank: int, dtype: torch.dtype
    ) -> LoraTables:
        del max_rows, max_rank  # the host needs nothing ahead
        return LoraTables(modules, num_slots, dtype, self.lora_layout)

    def lora(self, y: Tensor, x: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        check(x, "x", (batch.num_rows, table.in_features))
        check(y, "y", (batch.num_rows, sum(table.out_features)))
        native = native_table(table), native_batch(batch)
        self.library.lk_lora(self.handle, y.data_ptr(), x.data_ptr(), *native)

    def greedy(self, logits: Tensor) -> Greedy:
        check(logits, "logits", (None, None))
        rows, columns = logits.shape
        if columns == 0:
            raise ValueError("logits must have at least one column")
        result = Greedy(torch.empty(rows, dtype=torch.int64), torch.empty(rows), torch.empty(rows))
        native = abi.GreedyResult(*(tensor.data_ptr() for tensor in result))
        self.library.lk_greedy(self.handle, logits.data_ptr(), rows, columns, native)
        return result

    def decoder(self, spec: DecoderSpec) -> Decoder | None:
        return CpuDecoder(self.library, self.isa, spec)

    def _packed_bytes(self, weight: Tensor, code: int) -> int:
        size: int = self.library.lk_packed_bytes(self.handle, *weight.shape, code)
        return size

    def _rms_norm(self, x: Tensor, residual: int | None, weight: Tensor, eps: float, offset: float) -> Tensor:
        out, weight = torch.empty_like(x), weight + offset if offset else weight
        pointers = (x.data_ptr(), residual, weight.data_ptr())
        self.library.lk_rms_norm(self.handle, *pointers, *x.shape, eps, out.data_ptr())
        return out
