"""Base weights from a GGUF file, dequantised one tensor at a time into Hugging Face names and layout.

Knows the Llama architecture's tensor names and llama.cpp's row order of q and k. Configuration and tokenizer
are in `gguf_config` and `tokenizer`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES
from gguf.quants import dequantize

from lorikeet_server.weights.digest import BaseDigest
from lorikeet_server.weights.error import WeightsError
from lorikeet_server.weights.gguf_config import matrix_kinds, model_config
from lorikeet_server.weights.gguf_header import GgufHeader, GgufTensor
from lorikeet_server.weights.source import Slice

if TYPE_CHECKING:
    import torch

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GgufSource:
    """The tensors of a GGUF file as fp32. Implements `WeightSource`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = GgufHeader.read(path)
        self._config = model_config(self.header, path)
        self._names = {_hf_name(stored, path): stored for stored in self.header.tensors}
        self._data: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")

    @property
    def config(self) -> dict[str, Any]:
        return dict(self._config)

    @property
    def quantised(self) -> bool:
        return any(GGML_QUANT_SIZES[kind][0] > 1 for kind in matrix_kinds(self.header))

    @property
    def digest(self) -> str:
        digest = BaseDigest()
        digest.add_file(
            self.path, self.header.length, (tensor.extent for tensor in self.header.tensors.values())
        )
        return digest.hexdigest()

    def names(self) -> list[str]:
        return sorted(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored(name).shape

    def load(self, name: str, part: Slice | None = None) -> torch.Tensor:
        import torch  # only here: `prepare` opens sources too, and must be quick

        stored = self._stored(name)
        rows, columns = _ranges(stored.shape, part, name)
        at = self._stored_rows(name, rows)
        if len(stored.shape) == 1:
            values = _dequantize(stored, self._blocks(stored))[at]
        else:
            # Rows are dequantised alone, so a rank only pays for its own.
            values = _dequantize(stored, self._blocks(stored)[at])[:, columns.start : columns.stop]
        return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))

    def _stored(self, name: str) -> GgufTensor:
        if name not in self._names:
            raise WeightsError(f"model file {self.path} has no tensor for {name}")
        return self.header.tensors[self._names[name]]

    def _blocks(self, stored: GgufTensor) -> npt.NDArray[np.uint8]:
        """A view of the stored bytes, `[rows, bytes per row]`."""
        raw = self._data[stored.extent.begin : stored.extent.end]
        return raw.reshape(-1 if len(stored.shape) == 1 else stored.shape[0], _row_bytes(stored))

    def _stored_rows(self, name: str, rows: range) -> npt.NDArray[np.intp] | slice:
        """Where the file keeps the Hugging Face `rows`.

        llama.cpp rotates neighbouring pairs of a head where transformers rotates its two halves, so the
        converter stored row `(head, half, i)` of q and k as `(head, i, half)`.
        """
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if heads is None:
            return slice(rows.start, rows.stop)
        total = self.shape(name)[0]
        by_pair = np.arange(total).reshape(self._config[heads], -1, 2)
        return by_pair.swapaxes(1, 2).reshape(-1)[rows.start : rows.stop]


def _hf_name(stored: str, path: Path) -> str:
    if stored in _TOP:
        return _TOP[stored]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", stored)
    if match is None or match[2] not in _BLOCK:
        raise WeightsError(
            f"model file {path} has the tensor {stored}, which no Llama model has; use safetensors"
        )
    return f"model.layers.{match[1]}.{_BLOCK[match[2]]}.{match[3]}"


def _row_bytes(stored: GgufTensor) -> int:
    block, block_bytes = GGML_QUANT_SIZES[stored.quantization]
    return stored.shape[-1] // block * block_bytes


def _dequantize(stored: GgufTensor, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    try:
        values: npt.NDArray[np.float32] = dequantize(blocks, stored.quantization)
    except NotImplementedError:
        kind = stored.quantization.name
        raise WeightsError(
            f"tensor {stored.name} is quantised as {kind}, which cannot be read; use Q4..Q8 or F16"
        ) from None
    return values.reshape(-1) if len(stored.shape) == 1 else values


def _ranges(shape: tuple[int, ...], part: Slice | None, name: str) -> tuple[range, range]:
    ranges = [range(size) for size in shape]
    if part is not None:
        part.check(name, shape)
        ranges[part.dim] = range(part.start, part.stop)
    return ranges[0], ranges[-1]
