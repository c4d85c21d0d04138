"""A step in one call: the bits of op by op, close to the reference, with and without the optional parts."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

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
    Product,
    SequenceTables,
    StepTensors,
)

HIDDEN, FFN, HEADS, KV_HEADS, WIDTH, BLOCKS = 48, 80, 4, 2, 16, 20
SHAPE = AttentionShape(HEADS, KV_HEADS, WIDTH, WIDTH**-0.5)
QKV = SHAPE.qkv_width


def spec_of(kernels: Kernels, mode: LinearMode, *, full: bool) -> DecoderSpec:
    """The same random model for every backend; `full` has biases, head norms and adapters."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    def pack(out: int, width: int) -> PackedLinear:
        return kernels.pack_linear(random(out, width), mode)

    def table(width: int, *outs: int) -> LoraTable:
        tables = LoraTables([LoraModule(width, outs)], 4, torch.float32, kernels.lora_layout)
        for slot in range(4):
            matrices = {
                index: LoraMatrices(random(2 + slot, width), random(out, 2 + slot), 1.5)
                for index, out in enumerate(outs)
            }
            tables.put(slot, LoraAdapter.of(tables.form, matrices))
        return tables.tables[0]

    layers, cos_sin = [], random(256, WIDTH)
    for window in (None, 7, None):
        k_shape, v_shape = kernels.kv_layout(BLOCKS, 16, KV_HEADS, WIDTH, torch.float32)
        layer = DecoderLayer(
            random(HIDDEN),
            pack(QKV, HIDDEN),
            pack(HIDDEN, HEADS * WIDTH),
            random(HIDDEN),
            pack(2 * FFN, HIDDEN),
            pack(HIDDEN, FFN),
            AttentionLayer(
                SHAPE._replace(window=window), torch.zeros(k_shape), torch.zeros(v_shape), cos_sin
            ),
        )
        if full:
            layer = replace(
                layer,
                qkv_bias=random(QKV),
                q_norm=random(WIDTH) + 1,
                k_norm=random(WIDTH) + 1,
                qkv_lora=table(HIDDEN, HEADS * WIDTH, KV_HEADS * WIDTH, KV_HEADS * WIDTH),
                o_lora=table(HEADS * WIDTH, HIDDEN),
                gate_up_lora=table(HIDDEN, FFN, FFN),
                down_lora=table(FFN, HIDDEN),
            )
        layers.append(layer)
    return DecoderSpec(tuple(layers), random(HIDDEN), 1e-5)


@dataclass
class OpByOp:
    """`DecoderSpec`'s docstring in code."""

    kernels: Kernels
    spec: DecoderSpec

    def __call__(self, residual: Tensor, step: StepTensors, batch: LoraSegments | None) -> Tensor:
        spec, kernels = self.spec, self.kernels
        x: Tensor | None = None
        for layer in spec.layers:
            if x is None:
                normed = kernels.rms_norm(residual, layer.input_norm, spec.eps)
            else:
                normed, residual = kernels.add_rms_norm(Product(x), residual, layer.input_norm, spec.eps)
            attended = self._attend(layer, normed, step, batch)
            x = self._linear(attended, layer.o, layer.o_lora, batch)
            normed, residual = kernels.add_rms_norm(Product(x), residual, layer.post_norm, spec.eps)
            gate_up = self._linear(normed, layer.gate_up, layer.gate_up_lora, batch)
            x = self._linear(kernels.silu_mul(Product(gate_up)), layer.down, layer.down_lora, batch)
        assert x is not None
        return kernels.add_rms_norm(Product(x), residual, spec.final_norm, spec.eps)[0]

    def _attend(
        self, layer: DecoderLayer, normed: Tensor, step: StepTensors, batch: LoraSegments | None
    ) -> Tensor:
        spec, kernels = self.spec, self.kernels
        qkv = self._linear(normed, layer.qkv, layer.qkv_lora, batch)
        if layer.qkv_bias is not None:
            qkv += layer.qkv_bias
        heads = qkv.view(len(qkv), -1, WIDTH)
        for norm, part in ((layer.q_norm, slice(0, HEADS)), (layer.k_norm, slice(HEADS, HEADS + KV_HEADS))):
            if norm is not None:
                part_heads = heads[:, part].reshape(-1, WIDTH)
                heads[:, part] = kernels.rms_norm(part_heads, norm, spec.eps).view(len(qkv), -1, WIDTH)
        kernels.rope_and_cache(Product(qkv), layer.attention, step.positions, step.slot_mapping)
        return kernels.paged_attention(qkv[:, : HEADS * WIDTH], layer.attention, step.sequences)

    def _linear(
        self, x: Tensor, packed: PackedLinear, table: LoraTable | None, batch: LoraSegments | None
    ) -> Tensor:
        y = self.kernels.linear(x, packed)
        if table is not None and batch is not None:
            self.kernels.lora(y, x, table, batch)
        return y


def steps() -> list[StepTensors]:
    """Two prompts together, then a decode of each beside a third prompt, then one of more rows than a tile of
    a linear has."""
    blocks = torch.tensor([[3, 1, 0], [2, 5, 0], [7, 4, 6]], dtype=torch.int32)
    blocks = torch.cat([blocks, torch.arange(8, 20, dtype=torch.int32).expand(3, 12)], dim=1)
    result = []
    for lengths in (
        [(20, 20), (17, 17), (0, 0)],
        [(1, 21), (1, 18), (9, 9)],
        [(1, 22), (1, 19), (120, 129)],
    ):
        positions = [torch.arange(context - n, context) for n, context in lengths]
        slots = [blocks[s][p // 16].long() * 16 + p % 16 for s, p in enumerate(positions)]
        starts = torch.tensor([0] + [n for n, _ in lengths]).cumsum(0).int()
        contexts = torch.tensor([context for _, context in lengths]).int()
        result.append(
            StepTensors(torch.cat(positions), torch.cat(slots), SequenceTables(blocks, starts, contexts))
        )
    return result


@pytest.mark.parametrize("mode", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("full", [False, True])
def test_one_call_equals_op_by_op(kernels: Kernels, reference: Kernels, mode: LinearMode, full: bool) -> None:
    spec = spec_of(kernels, mode, full=full)
    fused = kernels.decoder(spec)
    assert fused is not None
    single, defined = (
        OpByOp(kernels, spec_of(kernels, mode, full=full)),
        OpByOp(reference, spec_of(reference, mode, full=full)),
    )
    for step in steps():
        rows = len(step.positions)
        hidden = torch.randn(rows, HIDDEN)
        batch = LoraSegments.build([row % 5 - 1 for row in range(rows)]) if full else None
        result = fused(hidden.clone(), step, batch)
        assert torch.equal(result, single(hidden.clone(), step, batch))
        torch.testing.assert_close(result, defined(hidden.clone(), step, batch), rtol=1e-4, atol=1e-4)


def test_nothing_to_do(kernels: Kernels) -> None:
    fused = kernels.decoder(spec_of(kernels, "float16", full=True))
    assert fused is not None
    none, start = torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)
    step = StepTensors(none, none, SequenceTables(torch.empty(0, 1, dtype=torch.int32), start, start[:0]))
    assert fused(torch.empty(0, HIDDEN), step, LoraSegments.build([])).shape == (0, HIDDEN)


def test_wrong_arguments(kernels: Kernels, reference: Kernels) -> None:
    spec = spec_of(kernels, "float16", full=False)
    fused, step = kernels.decoder(spec), steps()[0]
    assert fused is not None
    hidden = torch.randn(37, HIDDEN)
    with pytest.raises(ValueError, match="hidden must be"):
        fused(torch.randn(37, HIDDEN + 1), step, None)
    with pytest.raises(ValueError, match="positions must be"):
        fused(hidden[:36], step, None)
    with pytest.raises(ValueError, match="LoRA batch"):
        fused(hidden, step, LoraSegments.build([0]))
    with pytest.raises(ValueError, match="outside the cache"):
        tables = step.sequences.block_tables + BLOCKS
        fused(hidden, replace(step, sequences=replace(step.sequences, block_tables=tables)), None)
    with pytest.raises(ValueError, match="packed by this backend"):
        kernels.decoder(spec_of(reference, "float16", full=False))
    with pytest.raises(ValueError, match="packed by this backend"):
        kernels.decoder(replace(spec, layers=(replace(spec.layers[0], o=spec.layers[0].qkv),)))
    (table,) = LoraTables([LoraModule(HIDDEN, (5,))], 1, torch.float32).tables
    with pytest.raises(ValueError, match="does not fit"):
        kernels.decoder(replace(spec, layers=(replace(spec.layers[0], down_lora=table),)))
