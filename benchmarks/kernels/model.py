"""The shapes of SmolLM2-135M with random weights: every layer its own memory, as in a real step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

from lorikeet_server.device.huge_pages import filling, mapping
from lorikeet_server.kernels import (
    AttentionLayer,
    AttentionShape,
    DecoderLayer,
    DecoderSpec,
    Kernels,
    LinearMode,
    LoraAdapter,
    LoraMatrices,
    LoraModule,
    LoraSegments,
    LoraTable,
    LoraTables,
    PackedLinear,
    SequenceTables,
    StepTensors,
)

LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, WIDTH, VOCABULARY = 30, 576, 1536, 9, 3, 64, 49152
SHAPE = AttentionShape(HEADS, KV_HEADS, WIDTH, WIDTH**-0.5)
QKV = SHAPE.qkv_width
LINEARS = ((QKV, HIDDEN), (HIDDEN, HIDDEN), (2 * FFN, HIDDEN), (HIDDEN, FFN))  # out, in
SLICES = ((HEADS * WIDTH, KV_HEADS * WIDTH, KV_HEADS * WIDTH), (HIDDEN,), (FFN, FFN), (HIDDEN,))
BLOCKS = 2048
SLOTS = 64


@dataclass(frozen=True)
class Model:
    """Weights as plain tensors and packed, adapters, caches."""

    kernels: Kernels
    weights: list[list[Tensor]]  # [layer][linear], float32 [out, in]
    packed: list[list[PackedLinear]]
    quantised: list[list[PackedLinear]]  # the same from a GGUF file of type Q4_1, kept in its blocks
    tables: Sequence[Sequence[LoraTable]]
    spec: DecoderSpec
    head: PackedLinear

    @property
    def quantised_spec(self) -> DecoderSpec:
        """`spec` with the quantised weights."""
        layers = tuple(
            replace(layer, qkv=qkv, o=o, gate_up=gate_up, down=down)
            for layer, (qkv, o, gate_up, down) in zip(self.spec.layers, self.quantised, strict=True)
        )
        return replace(self.spec, layers=layers)

    @staticmethod
    def make(
        kernels: Kernels, mode: LinearMode, adapters: int, rank: int, targets: Sequence[int] = range(4)
    ) -> Model:
        """Adapters of one rank on the `targets` among `LINEARS`."""
        weights = [[torch.randn(shape) * 0.02 for shape in LINEARS] for _ in range(LAYERS)]
        packed = [[kernels.pack_linear(weight, mode) for weight in layer] for layer in weights]
        every = _tables(kernels, adapters, rank, targets, getattr(torch, mode)).tables
        tables = [every[at : at + len(LINEARS)] for at in range(0, len(every), len(LINEARS))]
        cos_sin = torch.randn(4096, WIDTH)
        layers = tuple(_layer(kernels, *each, cos_sin) for each in zip(packed, tables, strict=True))
        spec = DecoderSpec(layers, torch.ones(HIDDEN), 1e-5)
        head = kernels.pack_linear(torch.randn(VOCABULARY, HIDDEN) * 0.02, mode)
        quantised = [
            [kernels.pack_linear(_through_q4(weight), mode) for weight in layer] for layer in weights
        ]
        return Model(kernels, weights, packed, quantised, tables, spec, head)


def step(sequences: int, context: int, queries: int = 1) -> StepTensors:
    """Sequences of one length in scattered blocks."""
    return mixed_step([queries] * sequences, [context] * sequences)


def mixed_step(queries: Sequence[int], contexts: Sequence[int]) -> StepTensors:
    """A sequence for each of `contexts`, in scattered blocks; its last `queries` are rows of the step."""
    counts, ends = torch.tensor(queries), torch.tensor(contexts)
    needed = -(-max(contexts) // 16)
    blocks = torch.randperm(BLOCKS)[: len(contexts) * needed].reshape(len(contexts), needed).int()
    starts = F.pad(counts.cumsum(0), (1, 0))
    sequence = torch.arange(len(contexts)).repeat_interleave(counts)
    positions = torch.arange(len(sequence)) + (ends - starts[1:])[sequence]
    slots = blocks[sequence, positions // 16].long() * 16 + positions % 16
    return StepTensors(positions, slots, SequenceTables(blocks, starts.int(), ends.int()))


def lora_loop(table: LoraTable, adapters: int) -> Callable[[Tensor, Tensor, LoraSegments], None]:
    """What a server without a segmented kernel does: two small products per adapter and slice. The matrices
    are at hand as tensors.
    """
    widths = list(table.out_features)

    def matrices(slot: int, index: int) -> tuple[Tensor, Tensor, float]:
        entry = table.get(slot, index)
        assert entry is not None
        return entry.a.float(), entry.b.float(), entry.scale

    every = [[matrices(slot, index) for index in range(len(widths))] for slot in range(adapters)]

    def run(y: Tensor, x: Tensor, batch: LoraSegments) -> None:
        starts = batch.segment_starts.tolist()
        columns = torch.split(y, widths, dim=1)
        for i, slot in enumerate(batch.segment_slots.tolist()):
            rows = batch.permutation[starts[i] : starts[i + 1]].long()
            for target, (a, b, scale) in zip(columns, every[slot], strict=True):
                target[rows] += scale * ((x[rows] @ a.t()) @ b.t())

    return run


def _through_q4(weight: Tensor) -> Tensor:
    kind = GGMLQuantizationType.Q4_1
    return torch.from_numpy(dequantize(quantize(weight.numpy(), kind), kind).astype(np.float32))


def _tables(
    kernels: Kernels, adapters: int, rank: int, targets: Sequence[int], dtype: torch.dtype
) -> LoraTables:
    modules = [LoraModule(shape[1], outs) for shape, outs in zip(LINEARS, SLICES, strict=True)] * LAYERS
    tables = LoraTables(modules, SLOTS, dtype, kernels.lora_layout)
    widths = zip(tables.form.inputs, tables.form.outputs, strict=True)
    targeted = [linear in targets for linear, outs in enumerate(SLICES) for _ in outs] * LAYERS
    shapes = {index: shape for index, shape in enumerate(widths) if targeted[index]}
    for slot in range(adapters):
        matrices = {
            index: LoraMatrices(torch.randn(rank, width) * 0.02, torch.randn(out, rank) * 0.02, 2.0)
            for index, (width, out) in shapes.items()
        }
        tables.put(slot, _staged(LoraAdapter.of(tables.form, matrices)))
    return tables


def _staged(adapter: LoraAdapter) -> LoraAdapter:
    """On such pages as a server's."""
    size = len(adapter.memory)
    memory = mapping(filling(size))[:size]
    return adapter.at(memory.copy_(adapter.memory))


def _layer(
    kernels: Kernels, packed: list[PackedLinear], tables: Sequence[LoraTable], cos_sin: Tensor
) -> DecoderLayer:
    k_shape, v_shape = kernels.kv_layout(BLOCKS, 16, KV_HEADS, WIDTH, torch.float16)
    return DecoderLayer(
        torch.ones(HIDDEN),
        packed[0],
        packed[1],
        torch.ones(HIDDEN),
        packed[2],
        packed[3],
        AttentionLayer(SHAPE, torch.randn(k_shape).half(), torch.randn(v_shape).half(), cos_sin),
        qkv_lora=tables[0],
        o_lora=tables[1],
        gate_up_lora=tables[2],
        down_lora=tables[3],
    )
