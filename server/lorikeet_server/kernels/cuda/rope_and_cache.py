"""Rotation and cache write as one kernel: what is wrong with a call is an exception before a launch."""

import ctypes
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lorikeet_server.kernels.attention_layer import AttentionLayer
from lorikeet_server.kernels.cuda import abi
from lorikeet_server.kernels.cuda.launches import FORMATS, can_overlap, check_rows, check_whole, stream_of
from lorikeet_server.kernels.product import Product

WIDTH_UNIT = 16  # of a head: a thread has 8 columns of each half


class RopeAndCache:
    """`Kernels.rope_and_cache` for layers that `supports` tells."""

    def __init__(self, library: ctypes.CDLL, device: torch.device) -> None:
        self._library, self._device = library, device
        self._dependent = can_overlap(device)
        self._layers: WeakKeyDictionary[AttentionLayer, abi.CachedLayer] = WeakKeyDictionary()

    @staticmethod
    def supports(layer: AttentionLayer, dtype: torch.dtype) -> bool:
        """Whether heads are of such a width, and the cache is of the activations' dtype, which is copied."""
        same = layer.k_cache.dtype == layer.v_cache.dtype == dtype
        return dtype in FORMATS and same and layer.shape.head_dim % WIDTH_UNIT == 0

    def __call__(self, qkv: Product, layer: AttentionLayer, positions: Tensor, slot_mapping: Tensor) -> None:
        """Rows of `qkv` may be strided, its delta has no gaps. Enqueues one kernel on the current stream.

        The kernel reads `positions` and `slot_mapping` while the one before it may still run, so that must
        not be what writes them. A row where either is out of range is not cached, and its queries and keys
        turn into NaN: numbers on the device cannot be looked at without waiting. Raises `ValueError`,
        `TypeError`.
        """
        native, dtype, rows = self._native(layer), layer.k_cache.dtype, len(positions)
        y, delta = qkv
        check_rows(y, "qkv", (rows, layer.shape.qkv_width), dtype, self._device)
        for tensor, name in ((positions, "positions"), (slot_mapping, "slot_mapping")):
            check_whole(tensor, name, (rows,), torch.int64, self._device)
        call = abi.RopeAndCache(layer=native, rows=rows, format=FORMATS[dtype], dependent=self._dependent)
        call.qkv, call.qkv_stride = y.data_ptr(), y.stride(0) if rows > 1 else y.shape[1]
        if delta is not None:
            check_whole(delta, "delta", (rows, layer.shape.qkv_width), dtype, self._device)
            call.delta = delta.data_ptr()
            call.dependent = False  # streams met, which programmatic launches do not cross
        call.positions, call.places = positions.data_ptr(), slot_mapping.data_ptr()
        error: bytes | None = self._library.lorikeet_rope_and_cache(call, stream_of(self._device))
        if error is not None:
            raise ValueError(f"rotation and cache write were refused: {error.decode()}")

    def _native(self, layer: AttentionLayer) -> abi.CachedLayer:
        """A layer as the kernel takes it; made once, since nothing of it ever moves."""
        native = self._layers.get(layer)
        if native is None:
            native = self._layers[layer] = self._checked(layer)
        return native

    def _checked(self, layer: AttentionLayer) -> abi.CachedLayer:
        shape, k_cache, table = layer.shape, layer.k_cache, layer.cos_sin
        places = k_cache.shape[:2]
        cache = *places, shape.num_kv_heads, shape.head_dim
        check_whole(k_cache, "k_cache", cache, k_cache.dtype, self._device)
        check_whole(layer.v_cache, "v_cache", cache, k_cache.dtype, self._device)
        check_whole(table, "cos_sin", (len(table), shape.head_dim), torch.float32, self._device)
        tensors = {"k_cache": k_cache, "v_cache": layer.v_cache, "cos_sin": table}
        sizes = {"heads": shape.num_heads, "kv_heads": shape.num_kv_heads, "width": shape.head_dim}
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        return abi.CachedLayer(**addresses, places=places.numel(), positions=len(table), **sizes)
