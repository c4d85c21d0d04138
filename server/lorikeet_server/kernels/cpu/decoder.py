"""A decoder stack bound to the C++ backend: pointers collected once, then one call per step."""

import ctypes
import weakref
from ctypes import POINTER, pointer

import torch
from torch import Tensor

from lorikeet_server.kernels.cpu import abi
from lorikeet_server.kernels.cpu.native import (
    CpuLinear,
    check,
    native_attention,
    native_batch,
    native_places,
    native_sequences,
    native_table,
    raise_for,
)
from lorikeet_server.kernels.decoder import DecoderLayer, DecoderSpec, StepTensors
from lorikeet_server.kernels.lora_batch import LoraBatch
from lorikeet_server.kernels.lora_tables import LoraTable
from lorikeet_server.kernels.packed_linear import PackedLinear


class CpuDecoder:
    """See `decoder.Decoder`. The constructor raises `ValueError`/`TypeError` if the spec does not fit
    together."""

    def __init__(self, library: ctypes.CDLL, isa: str, spec: DecoderSpec) -> None:
        self._library = library
        self._spec = spec  # keeps every tensor alive
        self._hidden = spec.final_norm.shape[0]
        self._ffn = spec.layers[0].down.in_features if spec.layers else 0
        check(spec.final_norm, "final_norm", (None,))
        self._layers = (abi.DecoderLayer * len(spec.layers))(*(self._layer(layer) for layer in spec.layers))
        sizes = (len(spec.layers), self._hidden, self._ffn)
        first = ctypes.cast(self._layers, POINTER(abi.DecoderLayer))
        self._native = abi.Decoder(first, spec.final_norm.data_ptr(), *sizes, spec.eps)
        self._run = library.lk_decoder_open(isa.encode(), self._native)
        weakref.finalize(self, library.lk_decoder_close, self._run)

    def __call__(self, hidden: Tensor, step: StepTensors, batch: LoraBatch | None) -> Tensor:
        check(hidden, "hidden", (None, self._hidden))
        rows = hidden.shape[0]
        places = native_places(step.positions, step.slot_mapping, rows)
        if batch is not None and batch.num_rows != rows:
            raise ValueError(f"the LoRA batch has {batch.num_rows} rows, the step {rows}")
        rows_by_slot = None if batch is None else native_batch(batch)
        segments = pointer(rows_by_slot) if rows_by_slot is not None and rows_by_slot.segments else None
        native = abi.Step(places, native_sequences(step.sequences), segments, rows)
        out = torch.empty_like(hidden)
        raise_for(self._library.lk_decoder_run(self._run, native, hidden.data_ptr(), out.data_ptr()))
        return out

    def _layer(self, layer: DecoderLayer) -> abi.DecoderLayer:
        hidden, ffn, shape = self._hidden, self._ffn, layer.attention.shape
        return abi.DecoderLayer(
            _vector(layer.input_norm, hidden),
            _vector(layer.post_norm, hidden),
            _vector(layer.qkv_bias, shape.qkv_width),
            _vector(layer.q_norm, shape.head_dim),
            _vector(layer.k_norm, shape.head_dim),
            _linear(layer.qkv, hidden, shape.qkv_width),
            _linear(layer.o, shape.q_width, hidden),
            _linear(layer.gate_up, hidden, 2 * ffn),
            _linear(layer.down, ffn, hidden),
            _table(layer.qkv_lora, hidden, shape.qkv_width),
            _table(layer.o_lora, shape.q_width, hidden),
            _table(layer.gate_up_lora, hidden, 2 * ffn),
            _table(layer.down_lora, ffn, hidden),
            native_attention(layer.attention),
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
