"""The CUDA library as ctypes sees it: the structures of csrc/cuda and the functions of its headers."""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lorikeet_server.kernels.c_library import Functions, open_library
from lorikeet_server.kernels.lora_adapter import ENTRY

MAX_SLICES = 4
RANK_UNIT = 8  # of stored ranks
RANK_TILE = 16  # of the largest rank
DECODE_TILE, PREFILL_TILE = 8, 64  # rows
SHRINK, EXPAND = 1, 2  # bits of Call.phases
SILU, GELU = 0, 1  # Gated.activation
WIDEST_NORM = 16384  # columns

TILE = np.dtype([(name, np.int32) for name in ("first", "count", "slot", "rank")])


class Tables(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        ("entries", c_void_p),
        ("stride", c_int32),
        ("column", c_int32 * (MAX_SLICES + 1)),
        *((name, c_int32) for name in ("slices", "slots", "in_features", "max_rank")),
    ]


class Tiles(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        (name, c_void_p) for name in ("total", "permutation", "tiles", "items")
    ]


class TileLayout(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        (name, c_int32)
        for name in (
            "rows",
            "tile_rows",
            "max_tiles",
            "max_items",
            "permutation",
            "tiles",
            "items",
            "words",
        )
    ]


class Call(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        ("tables", Tables),
        ("tiles", Tiles),
        *((name, c_void_p) for name in ("x", "y", "v")),
        *((name, c_int64) for name in ("x_stride", "y_stride")),
        *((name, c_int32) for name in ("rows", "tile_rows", "format", "dependent", "phases", "most_tiles")),
        ("alone", c_int32),
    ]


class CachedLayer(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        *((name, c_void_p) for name in ("k_cache", "v_cache", "cos_sin")),
        *((name, c_int64) for name in ("places", "positions")),
        *((name, c_int32) for name in ("heads", "kv_heads", "width")),
    ]


class RopeAndCache(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        ("layer", CachedLayer),
        *((name, c_void_p) for name in ("qkv", "delta", "positions", "places")),
        ("qkv_stride", c_int64),
        *((name, c_int32) for name in ("rows", "format", "dependent")),
    ]


class Gated(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        *((name, c_void_p) for name in ("y", "delta", "out")),
        *((name, c_int32) for name in ("rows", "width", "format", "activation")),
    ]


class AddNorm(Structure):
    _fields_: ClassVar[list[tuple[Any, ...]]] = [
        *((name, c_void_p) for name in ("y", "delta", "residual", "weight")),
        *((name, c_int32) for name in ("rows", "width", "format")),
        *((name, c_float) for name in ("eps", "offset")),
    ]


SIZES = {
    "LoraEntry": ENTRY.itemsize,
    "LoraTile": TILE.itemsize,
    "TileLayout": ctypes.sizeof(TileLayout),
    "LorikeetSgmv": ctypes.sizeof(Call),
    "LorikeetRopeAndCache": ctypes.sizeof(RopeAndCache),
    "LorikeetGated": ctypes.sizeof(Gated),
    "LorikeetAddNorm": ctypes.sizeof(AddNorm),
}

# Result and arguments. A c_char_p result is null, or says what is wrong.
FUNCTIONS: Functions = {
    "lorikeet_struct_bytes": (c_int, [c_int]),
    "lorikeet_load": (c_char_p, []),
    "lorikeet_sgmv_scratch": (c_int64, [POINTER(Tables), c_int]),
    "lorikeet_sgmv": (c_char_p, [POINTER(Call), c_void_p]),
    "lorikeet_rope_and_cache": (c_char_p, [POINTER(RopeAndCache), c_void_p]),
    "lorikeet_gated": (c_char_p, [POINTER(Gated), c_void_p]),
    "lorikeet_add_norm": (c_char_p, [POINTER(AddNorm), c_void_p]),
    "lorikeet_tile_layout": (None, [c_int, c_int, c_int, c_int, POINTER(TileLayout)]),
    "lorikeet_schedule": (c_int, [c_void_p, c_int, c_int, c_void_p, POINTER(TileLayout), c_void_p]),
}


def load(path: Path) -> ctypes.CDLL:
    """Raises `OSError` if the library does not load or does not match."""
    return open_library(path, FUNCTIONS, "lorikeet_struct_bytes", SIZES)
