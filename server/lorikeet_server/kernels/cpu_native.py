"""Tensors of one op, checked and turned into the structures of `abi`. Everything that can be wrong is found
here."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, dtype

from lorikeet_server.kernels import abi
from lorikeet_server.kernels.lora_batch import LoraBatch, LoraSegments
from lorikeet_server.kernels.lora_table import LoraTable, dtype_codes
from lorikeet_server.kernels.ops import LinearMode

# Storage of a packed weight, as `DType` numbers it.
STORAGES = ("float32", "float16", "bfloat16", "block4", "block8")
BLOCK_STORAGES = STORAGES[3:]
KEY_TILE = 16  # kKeyTile
MAX_HEAD_DIM = 512  # kMaxDim of the attention tile
INSTRUCTION_SETS = ("avx512", "avx2", "portable")  # best first

_tables: WeakKeyDictionary[LoraTable, abi.LoraTable] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class CpuLinear:
    """A packed weight and the structure that points at it."""

    data: Tensor
    native: abi.Linear
    in_features: int
    out_features: int
    mode: LinearMode

    @property
    def storage(self) -> str:
        """One of `STORAGES`: `mode`, or blocks where the weight came from a quantised file."""
        return STORAGES[self.native.dtype]


def open_isa(library: ctypes.CDLL, isa: str) -> tuple[str, int]:
    """The name and the handle of an instruction set, the best there is for `auto`. Raises `RuntimeError`."""
    for name in INSTRUCTION_SETS if isa == "auto" else (isa,):
        handle: int | None = library.lk_open(name.encode())
        if handle:
            return name, handle
    raise RuntimeError(f"this processor has no {isa}")


def packed_linear(data: Tensor, weight: Tensor, code: int, mode: LinearMode) -> CpuLinear:
    """What `pack_linear` made of `weight` [out, in]: `data`, stored as `STORAGES[code]`."""
    out, width = weight.shape
    return CpuLinear(data, abi.Linear(data.data_ptr(), width, out, code, 0), width, out, mode)


def check(tensor: Tensor, name: str, shape: Sequence[int | None], kind: dtype = torch.float32) -> None:
    """Raise unless `tensor` is contiguous, of the given type and shape (None matches any size)."""
    if tensor.dtype is not kind:
        raise TypeError(f"{name} must be {kind}, not {tensor.dtype}")
    actual = tensor.shape
    if len(actual) != len(shape) or any(w is not None and w != a for a, w in zip(actual, shape, strict=True)):
        raise ValueError(f"{name} must be {['any' if w is None else w for w in shape]}, not {list(actual)}")
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"{name} must be contiguous and on the CPU")


def kv_shapes(
    blocks: int, block_size: int, kv_heads: int, head_dim: int, kind: dtype
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the two caches of a layer: keys transposed in tiles, values row by row, padded to whole
    vectors."""
    if block_size % KEY_TILE or block_size == 0:
        raise ValueError(f"the block size must be a multiple of {KEY_TILE}, not {block_size}")
    if head_dim % 2 or not 0 < head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"the head width must be even and at most {MAX_HEAD_DIM}, not {head_dim}")
    if kind not in dtype_codes:
        raise TypeError(f"the cache must be float32, float16 or bfloat16, not {kind}")
    k_shape = (blocks, kv_heads, block_size // KEY_TILE, head_dim, KEY_TILE)
    return k_shape, (blocks, kv_heads, block_size, -(-head_dim // 16) * 16)


def native_cache(k_cache: Tensor, v_cache: Tensor, kv_heads: int, head_dim: int) -> abi.KvCache:
    """Point at the caches of a layer."""
    block_size = v_cache.shape[2] if v_cache.dim() == 4 else 0
    k_shape, v_shape = kv_shapes(v_cache.shape[0], block_size, kv_heads, head_dim, v_cache.dtype)
    check(k_cache, "k_cache", k_shape, v_cache.dtype)
    check(v_cache, "v_cache", v_shape, v_cache.dtype)
    sizes = (dtype_codes[v_cache.dtype], block_size, v_cache.shape[0], 0)
    return abi.KvCache(k_cache.data_ptr(), v_cache.data_ptr(), *sizes)


def native_heads(num_heads: int, num_kv_heads: int, head_dim: int, scale: float = 0.0) -> abi.Heads:
    """The head counts, if they fit together."""
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} query heads do not divide among {num_kv_heads} key/value heads")
    return abi.Heads(num_heads, num_kv_heads, head_dim, scale)


def native_sequences(block_tables: Tensor, query_start: Tensor, context_len: Tensor) -> abi.Sequences:
    """Point at the tables of a step."""
    check(context_len, "context_len", (None,), torch.int32)
    count = context_len.shape[0]
    check(query_start, "query_start", (count + 1,), torch.int32)
    check(block_tables, "block_tables", (count, None), torch.int32)
    pointers = (block_tables.data_ptr(), query_start.data_ptr(), context_len.data_ptr())
    return abi.Sequences(*pointers, count, block_tables.shape[1])


def native_table(table: LoraTable) -> abi.LoraTable:
    """Point at the arrays of a table; made once per table, since they never move."""
    native = _tables.get(table)
    if native is None:
        each = table.arrays
        arrays = (table.columns, each.a, each.b, each.g, each.rank, each.dtype, each.scale)
        sizes = (len(table.out_features), table.num_slots, table.in_features, sum(table.out_features))
        native = abi.LoraTable(*(array.data_ptr() for array in arrays), *sizes)
        _tables[table] = native
    return native


def native_batch(batch: LoraBatch) -> abi.LoraBatch:
    """Point at the segments of a step."""
    if not isinstance(batch, LoraSegments):
        raise TypeError(f"expected rows batched for this backend, not {type(batch).__name__}")
    pointers = (batch.permutation.data_ptr(), batch.segment_starts.data_ptr(), batch.segment_slots.data_ptr())
    return abi.LoraBatch(*pointers, batch.num_segments, batch.permutation.shape[0])


def raise_for(error: bytes | None) -> None:
    """Turn what the library found out of range into an exception."""
    if error is not None:
        raise ValueError(error.decode())
