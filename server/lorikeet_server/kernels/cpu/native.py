"""Tensors of one op, checked and turned into the structures of `abi`. Everything that can be wrong is found
here."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, dtype

from lorikeet_server.kernels.attention_layer import AttentionLayer
from lorikeet_server.kernels.cpu import abi
from lorikeet_server.kernels.lora_batch import LoraBatch, LoraSegments
from lorikeet_server.kernels.lora_layout import dtype_codes
from lorikeet_server.kernels.lora_tables import LoraTable
from lorikeet_server.kernels.packed_linear import LinearMode
from lorikeet_server.kernels.sequence_tables import SequenceTables

# Storage of a packed weight, as `DType` numbers it.
STORAGES = ("float32", "float16", "bfloat16", "block4", "block8")
BLOCK_STORAGES = STORAGES[3:]
KEY_TILE = 16  # kKeyTile
MAX_HEAD_DIM = 512  # kMaxDim of the attention tile
# Of keys and values; integers have a scale for each position of a head.
KV_CODES = {**dtype_codes, torch.int16: 5}
INSTRUCTION_SETS = ("avx512", "avx2", "portable")  # best first

_attentions: WeakKeyDictionary[AttentionLayer, abi.Attention] = WeakKeyDictionary()
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
    integers = STORAGES[code] in BLOCK_STORAGES and mode != "float32"
    return CpuLinear(data, abi.Linear(data.data_ptr(), width, out, code, integers), width, out, mode)


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
    """Shapes of the two caches of a layer, in tiles: keys transposed, values row by row, padded to whole
    vectors. Behind either, where these are integers, their scales in float32."""
    if block_size % KEY_TILE or block_size == 0:
        raise ValueError(f"the block size must be a multiple of {KEY_TILE}, not {block_size}")
    if head_dim % 2 or not 0 < head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"the head width must be even and at most {MAX_HEAD_DIM}, not {head_dim}")
    if kind not in KV_CODES:
        raise TypeError(f"the cache must be float32, float16, bfloat16 or int16, not {kind}")
    tiles, scales = (blocks, kv_heads, block_size // KEY_TILE), 2 * KEY_TILE if kind is torch.int16 else 0
    return (*tiles, KEY_TILE * head_dim + scales), (*tiles, KEY_TILE * (-(-head_dim // 16) * 16) + scales)


def native_attention(layer: AttentionLayer) -> abi.Attention:
    """Point at the attention of a layer; made once per layer, since nothing of it ever moves."""
    native = _attentions.get(layer)
    if native is None:
        heads, kv_heads, dim, scale, window, soft_cap = layer.shape
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"{heads} query heads do not divide among {kv_heads} key/value heads")
        check(layer.cos_sin, "cos_sin", (None, dim))
        table = layer.cos_sin.data_ptr(), layer.cos_sin.shape[0], 0
        native_heads = abi.Heads(heads, kv_heads, dim, scale, window or 0, soft_cap or 0.0)
        native = abi.Attention(native_heads, _native_cache(layer), *table)
        _attentions[layer] = native
    return native


def _native_cache(layer: AttentionLayer) -> abi.KvCache:
    shape, k_cache, v_cache = layer.shape, layer.k_cache, layer.v_cache
    block_size = v_cache.shape[2] * KEY_TILE if v_cache.dim() == 4 else 0
    sizes = v_cache.shape[0], block_size, shape.num_kv_heads, shape.head_dim
    k_shape, v_shape = kv_shapes(*sizes, v_cache.dtype)
    check(k_cache, "k_cache", k_shape, v_cache.dtype)
    check(v_cache, "v_cache", v_shape, v_cache.dtype)
    code = KV_CODES[v_cache.dtype]
    return abi.KvCache(k_cache.data_ptr(), v_cache.data_ptr(), code, block_size, v_cache.shape[0], 0)


def native_places(positions: Tensor, slot_mapping: Tensor, rows: int) -> abi.Places:
    """Point at where the rows of a step belong."""
    check(positions, "positions", (rows,), torch.int64)
    check(slot_mapping, "slot_mapping", (rows,), torch.int64)
    return abi.Places(positions.data_ptr(), slot_mapping.data_ptr())


def native_sequences(sequences: SequenceTables) -> abi.Sequences:
    """Point at the tables of a step."""
    tables, starts, contexts = sequences.block_tables, sequences.query_start, sequences.context_len
    check(contexts, "context_len", (None,), torch.int32)
    count = contexts.shape[0]
    check(starts, "query_start", (count + 1,), torch.int32)
    check(tables, "block_tables", (count, None), torch.int32)
    pointers = (tables.data_ptr(), starts.data_ptr(), contexts.data_ptr())
    return abi.Sequences(*pointers, count, tables.shape[1])


def native_table(table: LoraTable) -> abi.LoraTable:
    """Point at the entries of a table; made once per table, since they never move."""
    native = _tables.get(table)
    if native is None:
        entries, columns = table.entries, table.columns
        slots, slices = entries.shape
        sizes = (entries.strides[0] // entries.itemsize, slices, slots, table.in_features, columns.sum())
        pointers = (entries.ctypes.data, columns.ctypes.data)
        native = abi.LoraTable(*pointers, *sizes, table.of.form.layout.panel, dtype_codes[table.dtype])
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
