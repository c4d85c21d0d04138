"""The C++ backend: checks shapes, allocates results, and hands pointers to the library."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, dtype

from lorikeet_server.kernels import abi, build
from lorikeet_server.kernels.decoder import Decoder, DecoderSpec
from lorikeet_server.kernels.lora_batch import LoraBatch
from lorikeet_server.kernels.lora_table import LoraTable, dtype_codes
from lorikeet_server.kernels.ops import Greedy, LinearMode, PackedLinear
from lorikeet_server.kernels.reference import round_weight

PANEL = 32  # kPanel
KEY_TILE = 16  # kKeyTile
MAX_HEAD_DIM = 512  # kMaxDim of the attention tile
INSTRUCTION_SETS = ("avx512", "avx2", "portable")  # best first


@dataclass(frozen=True, slots=True, eq=False)
class CpuLinear:
    """A packed weight and the structure that points at it."""

    data: Tensor
    native: abi.Linear
    in_features: int
    out_features: int
    mode: LinearMode


def check(tensor: Tensor, name: str, shape: Sequence[int | None], kind: dtype = torch.float32) -> None:
    """Raise unless `tensor` is contiguous, of the given type and shape (None matches any size)."""
    if tensor.dtype is not kind:
        raise TypeError(f"{name} must be {kind}, not {tensor.dtype}")
    actual = tensor.shape
    if len(actual) != len(shape) or any(w is not None and w != a for a, w in zip(actual, shape, strict=True)):
        raise ValueError(f"{name} must be {['any' if w is None else w for w in shape]}, not {list(actual)}")
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"{name} must be contiguous and on the CPU")


class CpuKernels:
    """See `ops.Kernels`. One instance drives one instruction set; all share one pool of threads."""

    def __init__(self, isa: str = "auto") -> None:
        if isa not in ("auto", *INSTRUCTION_SETS):
            raise ValueError(f"unknown instruction set {isa!r}, known: auto, {', '.join(INSTRUCTION_SETS)}")
        self.library = abi.load(build.library())
        for self.isa in INSTRUCTION_SETS if isa == "auto" else (isa,):
            self.handle: int | None = self.library.lk_open(self.isa.encode())
            if self.handle:
                break
        else:
            raise RuntimeError(f"this processor has no {isa}")
        self.library.lk_set_threads(torch.get_num_threads())
        self.name = f"cpu-{self.isa}"
        self._tables: WeakKeyDictionary[LoraTable, abi.LoraTable] = WeakKeyDictionary()

    def pack_linear(self, weight: Tensor, mode: LinearMode) -> PackedLinear:
        weight = round_weight(weight, mode).contiguous()
        rows, depth = weight.shape
        depth_stored = depth + depth % 2 if mode == "bfloat16" else depth
        data = torch.empty(-(-rows // PANEL) * depth_stored * PANEL, dtype=weight.dtype)
        code = dtype_codes[weight.dtype]
        self.library.lk_pack_linear(weight.data_ptr(), rows, depth, code, data.data_ptr())
        return CpuLinear(data, abi.Linear(data.data_ptr(), depth, rows, code, 0), depth, rows, mode)

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        assert isinstance(packed, CpuLinear)
        check(x, "x", (None, packed.in_features))
        y = torch.empty(x.shape[0], packed.out_features)
        self.library.lk_linear(self.handle, x.data_ptr(), x.shape[0], packed.native, y.data_ptr())
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        check(weight, "weight", (None,))
        check(x, "x", (None, weight.shape[0]))
        out = torch.empty_like(x)
        rows, width = x.shape
        self.library.lk_rms_norm(
            self.handle, x.data_ptr(), None, weight.data_ptr(), rows, width, eps, out.data_ptr()
        )
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        check(weight, "weight", (None,))
        check(x, "x", (None, weight.shape[0]))
        check(residual, "residual", x.shape)
        out = torch.empty_like(x)
        pointers = (x.data_ptr(), residual.data_ptr(), weight.data_ptr())
        self.library.lk_rms_norm(self.handle, *pointers, *x.shape, eps, out.data_ptr())
        return out, residual

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        check(gate_up, "gate_up", (None, None))
        rows, width = gate_up.shape
        if width % 2:
            raise ValueError(f"gate_up must have an even width, not {width}")
        out = torch.empty(rows, width // 2)
        self.library.lk_silu_mul(self.handle, gate_up.data_ptr(), rows, width // 2, out.data_ptr())
        return out

    def kv_layout(
        self, num_blocks: int, block_size: int, kv_heads: int, head_dim: int, kv_dtype: dtype
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if block_size % KEY_TILE or head_dim % 2 or not 0 < head_dim <= MAX_HEAD_DIM:
            raise ValueError(
                f"needs blocks of a multiple of {KEY_TILE} and an even head width up to {MAX_HEAD_DIM}"
            )
        if kv_dtype not in dtype_codes:
            raise TypeError(f"the cache must be float32, float16 or bfloat16, not {kv_dtype}")
        k_shape = (num_blocks, kv_heads, block_size // KEY_TILE, head_dim, KEY_TILE)
        return k_shape, (num_blocks, kv_heads, block_size, -(-head_dim // 16) * 16)

    def rope_and_cache(
        self,
        qkv: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slot_mapping: Tensor,
        num_heads: int,
        num_kv_heads: int,
    ) -> None:
        rows, dim = qkv.shape[0], cos_sin.shape[-1]
        check(qkv, "qkv", (None, (num_heads + 2 * num_kv_heads) * dim))
        check(cos_sin, "cos_sin", (None, dim))
        check(positions, "positions", (rows,), torch.int64)
        check(slot_mapping, "slot_mapping", (rows,), torch.int64)
        cache = self.native_cache(k_cache, v_cache, num_kv_heads, dim)
        pointers = (positions.data_ptr(), slot_mapping.data_ptr(), cos_sin.data_ptr())
        rope = abi.Rope(*pointers, cos_sin.shape[0], 0)
        heads = abi.Heads(num_heads, num_kv_heads, dim, 0.0)
        self.raise_for(self.library.lk_rope_and_cache(self.handle, qkv.data_ptr(), rows, rope, cache, heads))

    def paged_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        query_start: Tensor,
        context_len: Tensor,
        scale: float,
        num_heads: int,
        num_kv_heads: int,
    ) -> Tensor:
        if (
            q.dim() != 2
            or q.dtype != torch.float32
            or q.shape[1] % num_heads
            or (q.numel() and q.stride(1) != 1)
        ):
            raise ValueError(
                f"q must be float32 [rows, {num_heads} * head width], not {list(q.shape)} {q.dtype}"
            )
        if num_heads % num_kv_heads:
            raise ValueError(f"{num_heads} query heads do not divide among {num_kv_heads} key/value heads")
        out = torch.empty(q.shape)
        dim = q.shape[1] // num_heads
        cache = self.native_cache(k_cache, v_cache, num_kv_heads, dim)
        sequences = self.native_sequences(block_tables, query_start, context_len)
        heads = abi.Heads(num_heads, num_kv_heads, dim, scale)
        arguments = (q.data_ptr(), q.stride(0), q.shape[0], cache, sequences, heads, out.data_ptr())
        self.raise_for(self.library.lk_attention(self.handle, *arguments))
        return out

    def lora(self, y: Tensor, x: Tensor, table: LoraTable, batch: LoraBatch) -> None:
        check(x, "x", (batch.num_rows, table.in_features))
        check(y, "y", (batch.num_rows, sum(table.out_features)))
        native = self.native_table(table), native_batch(batch)
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
        from lorikeet_server.kernels.cpu_decoder import CpuDecoder

        return CpuDecoder(self, spec)

    def native_table(self, table: LoraTable) -> abi.LoraTable:
        """The structure that points at the table's arrays; made once, since they never move."""
        native = self._tables.get(table)
        if native is None:
            arrays = (table.columns, table.a_pointers, table.b_pointers, table.g_pointers)
            arrays += (table.ranks, table.dtypes, table.scales)
            sizes = (len(table.out_features), table.num_slots, table.in_features, sum(table.out_features))
            native = abi.LoraTable(*(array.data_ptr() for array in arrays), *sizes)
            self._tables[table] = native
        return native

    def native_cache(self, k_cache: Tensor, v_cache: Tensor, kv_heads: int, head_dim: int) -> abi.KvCache:
        """Check the two caches of a layer and point at them."""
        block_size = v_cache.shape[2] if v_cache.dim() == 4 else 0
        shapes = self.kv_layout(v_cache.shape[0], block_size, kv_heads, head_dim, v_cache.dtype)
        check(k_cache, "k_cache", shapes[0], v_cache.dtype)
        check(v_cache, "v_cache", shapes[1], v_cache.dtype)
        sizes = (dtype_codes[v_cache.dtype], block_size, v_cache.shape[0], 0)
        return abi.KvCache(k_cache.data_ptr(), v_cache.data_ptr(), *sizes)

    @staticmethod
    def native_sequences(block_tables: Tensor, query_start: Tensor, context_len: Tensor) -> abi.Sequences:
        """Check the tables of a step and point at them."""
        count = context_len.shape[0]
        check(context_len, "context_len", (None,), torch.int32)
        check(query_start, "query_start", (count + 1,), torch.int32)
        check(block_tables, "block_tables", (count, None), torch.int32)
        pointers = (block_tables.data_ptr(), query_start.data_ptr(), context_len.data_ptr())
        return abi.Sequences(*pointers, count, block_tables.shape[1])

    @staticmethod
    def raise_for(error: bytes | None) -> None:
        """Turn what the library found out of range into an exception."""
        if error is not None:
            raise ValueError(error.decode())


def native_batch(batch: LoraBatch) -> abi.LoraBatch:
    """Point at the step's segments."""
    pointers = (batch.permutation.data_ptr(), batch.segment_starts.data_ptr(), batch.segment_slots.data_ptr())
    return abi.LoraBatch(*pointers, batch.num_segments, batch.permutation.shape[0])


assert ctypes.sizeof(ctypes.c_void_p) == 8, "the kernels need a 64-bit process"
