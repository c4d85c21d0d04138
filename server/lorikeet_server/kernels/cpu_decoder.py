"""A decoder stack bound to the C++ backend: pointers collected once, then one call per step."""

import ctypes
import weakref
from ctypes import POINTER, pointer

import torch
from torch import Tensor

from lorikeet_server.kernels import abi
from lorikeet_server.kernels.cpu_native import (
    CpuLinear,
    check,
    native_batch,
    native_cache,
    native_heads,
    native_sequences,
    native_table,
    raise_for,
)
from lorikeet_server.kernels.decoder import DecoderLayer, DecoderSpec, StepTensors
from lorikeet_server.kernels.lora_batch import LoraBatch
from lorikeet_server.kernels.lora_table import LoraTable
from lorikeet_server.kernels.ops import PackedLinear


class CpuDecoder:
    """See `decoder.Decoder`. The constructor raises `ValueError`/`TypeError` if the spec does not fit
    together."""

    def __init__(self, library: ctypes.CDLL, isa: str, spec: DecoderSpec) -> None:
        self._library = library
        self._spec = spec  # keeps every tensor alive
        self._hidden = spec.final_norm.shape[0]
        self._ffn = spec.layers[0].down.in_features if spec.layers else 0
        check(spec.final_norm, "final_norm", (None,))
        check(spec.cos_sin, "cos_sin", (None, spec.head_dim))
        heads = native_heads(spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.scale)
        self._layers = (abi.DecoderLayer * len(spec.layers))(*(self._layer(layer) for layer in spec.layers))
        sizes = (len(spec.layers), self._hidden, self._ffn, spec.cos_sin.shape[0])
        weights = (spec.final_norm.data_ptr(), spec.cos_sin.data_ptr())
        first = ctypes.cast(self._layers, POINTER(abi.DecoderLayer))
        self._native = abi.Decoder(first, *weights, heads, *sizes, spec.eps, 0)
        self._run = library.lk_decoder_open(isa.encode(), self._native)
        weakref.finalize(self, library.lk_decoder_close, self._run)

    def __call__(self, hidden: Tensor, step: StepTensors, batch: LoraBatch | None) -> Tensor:
        check(hidden, "hidden", (None, self._hidden))
        rows = hidden.shape[0]
        check(step.positions, "positions", (rows,), torch.int64)
        check(step.slot_mapping, "slot_mapping", (rows,), torch.int64)
        if batch is not None and batch.num_rows != rows:
            raise ValueError(f"the LoRA batch has {batch.num_rows} rows, the step {rows}")
        rope = abi.Rope(step.positions.data_ptr(), step.slot_mapping.data_ptr(), None, 0, 0)
        sequences = native_sequences(step.block_tables, step.query_start, step.context_len)
        rows_by_slot = None if batch is None else native_batch(batch)
        segments = pointer(rows_by_slot) if rows_by_slot is not None and rows_by_slot.segments else None
        native = abi.Step(rope, sequences, segments, rows)
        out = torch.empty_like(hidden)
        raise_for(self._library.lk_decoder_run(self._run, native, hidden.data_ptr(), out.data_ptr()))
        return out

    def _layer(self, layer: DecoderLayer) -> abi.DecoderLayer:
        spec, hidden, ffn = self._spec, self._hidden, self._ffn
        attention = spec.num_heads * spec.head_dim
        qkv = attention + 2 * spec.num_kv_heads * spec.head_dim
        return abi.DecoderLayer(
            _vector(layer.input_norm, hidden),
            _vector(layer.post_norm, hidden),
            _vector(layer.qkv_bias, qkv),
            _vector(layer.q_norm, spec.head_dim),
            _vector(layer.k_norm, spec.head_dim),
            _linear(layer.qkv, hidden, qkv),
            _linear(layer.o, attention, hidden),
            _linear(layer.gate_up, hidden, 2 * ffn),
            _linear(layer.down, ffn, hidden),
            _table(layer.qkv_lora, hidden, qkv),
            _table(layer.o_lora, attention, hidden),
            _table(layer.gate_up_lora, hidden, 2 * ffn),
            _table(layer.down_lora, ffn, hidden),
            native_cache(layer.k_cache, layer.v_cache, spec.num_kv_heads, spec.head_dim),
        )


def _vector(tensor: Tensor | None, width: int) -> int | None:
    if tensor is None:
        return None
    check(tensor, "a norm or bias", (width,))
    return tensor.data_ptr()


def _linear(packed: PackedLinear, width_in: int, width_out: int) -> abi.Linear:
    if not isinstance(packed, CpuLinear) or (packed.in_features, packed.out_features) != (
        width_in,
        width_out,
    ):
        raise ValueError(f"expected a linear packed by this backend, {width_in} -> {width_out}")
    return packed.native


def _table(table: LoraTable | None, width_in: int, width_out: int) -> object:
    if table is None:
        return None
    if (table.in_features, sum(table.out_features)) != (width_in, width_out):
        widths = f"{table.in_features} -> {list(table.out_features)}"
        raise ValueError(f"a LoRA table of {widths} does not fit a layer of {width_in} -> {width_out}")
    return pointer(native_table(table))
