"""The C++ library as ctypes sees it: the structures of csrc/cpu/types.h and the functions of api.cpp."""

import ctypes
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any, ClassVar

from lorikeet_server.kernels.c_library import Functions, open_library


class Linear(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        ("data", c_void_p),
        ("in_features", c_int32),
        ("out_features", c_int32),
        ("dtype", c_int32),
        ("integers", c_int32),
    ]


class LoraTable(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        *((name, c_void_p) for name in ("entries", "columns")),
        *((name, c_int32) for name in ("stride", "slices", "slots", "in_features", "out_features")),
        ("panel", c_int32),
        ("dtype", c_int32),
    ]


class LoraBatch(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        *((name, c_void_p) for name in ("permutation", "starts", "slots")),
        ("segments", c_int32),
        ("rows", c_int32),
    ]


class KvCache(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        ("k", c_void_p),
        ("v", c_void_p),
        *((name, c_int32) for name in ("dtype", "block_size", "blocks", "padding")),
    ]


class Heads(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        ("query", c_int32),
        ("kv", c_int32),
        ("dim", c_int32),
        ("scale", c_float),
        ("window", c_int32),
        ("soft_cap", c_float),
    ]


class Attention(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        ("heads", Heads),
        ("cache", KvCache),
        ("cos_sin", c_void_p),
        ("max_position", c_int32),
        ("padding", c_int32),
    ]


class Places(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [(name, c_void_p) for name in ("positions", "slot_mapping")]


class Sequences(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        *((name, c_void_p) for name in ("block_tables", "query_start", "context_len")),
        ("count", c_int32),
        ("max_blocks", c_int32),
    ]


class DecoderLayer(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        *((name, c_void_p) for name in ("input_norm", "post_norm", "qkv_bias", "q_norm", "k_norm")),
        *((name, Linear) for name in ("qkv", "o", "gate_up", "down")),
        *((name, POINTER(LoraTable)) for name in ("qkv_lora", "o_lora", "gate_up_lora", "down_lora")),
        ("attention", Attention),
    ]


class Decoder(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        ("layers", POINTER(DecoderLayer)),
        ("final_norm", c_void_p),
        *((name, c_int32) for name in ("count", "hidden", "ffn")),
        ("eps", c_float),
    ]


class Step(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        ("places", Places),
        ("sequences", Sequences),
        ("batch", POINTER(LoraBatch)),
        ("rows", c_int32),
    ]


class GreedyResult(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        (name, c_void_p) for name in ("tokens", "logprobs", "logsumexp")
    ]


class Penalties(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        ("count", c_int32),
        ("columns", c_int32),
        *((name, c_void_p) for name in ("rows", "lanes", "factors", "output", "seen")),
    ]


class Filters(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        (name, c_void_p) for name in ("temperature", "top_k", "top_p", "typical_p")
    ]


STRUCTURES = (
    *(Linear, LoraTable, LoraBatch, Attention, Places, Sequences, DecoderLayer, Decoder, Step),
    *(Penalties, Filters),
)

# Result and arguments. A c_char_p result is null, or says which argument is out of range. ctypes releases the
# interpreter lock around each call.
FUNCTIONS: Functions = {
    "lk_struct_bytes": (c_int, [c_int]),
    "lk_open": (c_void_p, [c_char_p]),
    "lk_set_threads": (None, [c_int]),
    "lk_panel": (c_int, [c_void_p]),
    "lk_packed_bytes": (c_int64, [c_void_p, c_int, c_int, c_int]),
    "lk_pack_blocks": (c_bool, [c_void_p, c_void_p, c_int, c_int, c_int, c_void_p]),
    "lk_pack_linear": (None, [c_void_p, c_void_p, c_int, c_int, c_int, c_void_p]),
    "lk_linear": (None, [c_void_p, c_void_p, c_int, POINTER(Linear), c_void_p]),
    "lk_rms_norm": (None, [c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_int, c_float, c_void_p]),
    "lk_silu_mul": (None, [c_void_p, c_void_p, c_int, c_int, c_void_p]),
    "lk_rope_and_cache": (
        c_char_p,
        [c_void_p, c_void_p, c_int, POINTER(Places), POINTER(Attention)],
    ),
    "lk_attention": (
        c_char_p,
        [c_void_p, c_void_p, c_int64, c_int, POINTER(Attention), POINTER(Sequences), c_void_p],
    ),
    "lk_lora": (None, [c_void_p, c_void_p, c_void_p, POINTER(LoraTable), POINTER(LoraBatch)]),
    "lk_greedy": (None, [c_void_p, c_void_p, c_int, c_int, POINTER(GreedyResult)]),
    "lk_weigh": (None, [c_void_p, c_void_p, c_int, c_int, c_void_p, c_void_p]),
    "lk_keep_top_p": (None, [c_void_p, c_int, c_int, c_void_p, c_void_p]),
    "lk_keep": (None, [c_void_p, c_int, c_int, POINTER(Filters), c_void_p]),
    "lk_best_of": (None, [c_void_p, c_int, c_int, c_int, c_void_p, c_void_p]),
    "lk_penalise": (None, [c_void_p, POINTER(Penalties)]),
    "lk_invert": (None, [c_void_p, c_int, c_int, c_void_p, c_void_p]),
    "lk_decoder_open": (c_void_p, [c_char_p, POINTER(Decoder)]),
    "lk_decoder_close": (None, [c_void_p]),
    "lk_decoder_run": (c_char_p, [c_void_p, POINTER(Step), c_void_p, c_void_p]),
}


def load(path: Path) -> ctypes.CDLL:
    """Raises `OSError` if the library does not load or does not match."""
    sizes = {structure.__name__: ctypes.sizeof(structure) for structure in STRUCTURES}
    return open_library(path, FUNCTIONS, "lk_struct_bytes", sizes)
