"""What we tell FlashInfer, by a stand-in that keeps to its documentation and, where it is installed, to the
signatures of its own methods."""

import inspect

import pytest
import torch
from flashinfer_stand_in import LIBRARY, PROCESSORS, Decode, Prefill
from torch import Tensor

from lorikeet_server.device.parcel import StepParcel
from lorikeet_server.kernels import AttentionLayer, AttentionShape, SequenceTables, select
from lorikeet_server.kernels.cuda.attention import FlashInferAttention, FlashInferPlan

BLOCK, BLOCKS, CPU = 16, 30, torch.device("cpu")
PARCEL = StepParcel(4096, CPU)
SHAPE = AttentionShape(6, 2, 64, 64**-0.5)
# Of the layers of one model.
SHAPES = (
    SHAPE,
    SHAPE._replace(window=33),
    SHAPE._replace(window=1),
    SHAPE._replace(soft_cap=0.5),
    SHAPE._replace(soft_cap=0.5, window=33),
)


@pytest.fixture(params=["documented", "installed"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FlashInferAttention:
    if request.param == "installed":
        real = pytest.importorskip("flashinfer", reason="FlashInfer is not installed")
        monkeypatch.setattr(Prefill, "real", real.BatchPrefillWithPagedKVCacheWrapper)
        monkeypatch.setattr(Decode, "real", real.BatchDecodeWithPagedKVCacheWrapper)
    return FlashInferAttention(LIBRARY, CPU, torch.bfloat16, PROCESSORS)


def step(lengths: list[tuple[int, int]], width: int, seed: int = 0) -> SequenceTables:
    """Sequences for pairs of (queries, context)."""
    free = iter(torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(seed)).tolist())
    tables = torch.full((len(lengths), width), -1, dtype=torch.int32)
    for row, (_, context) in enumerate(lengths):
        for column in range(-(-context // BLOCK)):
            tables[row, column] = next(free)
    starts = torch.tensor([0, *(n for n, _ in lengths)]).cumsum(0).int()
    return SequenceTables(tables, starts, torch.tensor([context for _, context in lengths]).int())


def planned(
    attention: FlashInferAttention, sequences: SequenceTables, shapes: tuple[AttentionShape, ...], fixed: bool
) -> FlashInferPlan:
    """As part of a step."""
    attention.reserve(shapes, 256)
    PARCEL.begin()
    plan = attention.plan(sequences, shapes, BLOCK, PARCEL, fixed)
    PARCEL.send()
    return plan


def layers() -> list[AttentionLayer]:
    reference = select("reference", dtype=torch.bfloat16)
    k_shape, v_shape = reference.kv_layout(BLOCKS, BLOCK, 2, 64, torch.bfloat16)
    caches = torch.randn(k_shape).bfloat16(), torch.randn(v_shape).bfloat16()
    return [AttentionLayer(shape, *caches, torch.empty(0)) for shape in SHAPES]


def expected(q: Tensor, layer: AttentionLayer, sequences: SequenceTables) -> Tensor:
    return select("reference", dtype=torch.bfloat16).paged_attention(q, layer, sequences)


@pytest.mark.parametrize(
    "lengths", [[(37, 37), (5, 90)], [(1, 61), (20, 52), (1, 3)], [(1, 16)], [(16, 32), (1, 33)]]
)
def test_any_step(attention: FlashInferAttention, lengths: list[tuple[int, int]]) -> None:
    sequences = step(lengths, 7)
    q = torch.randn(int(sequences.query_start[-1]), 10 * 64).bfloat16()[:, : 6 * 64]
    plan = planned(attention, sequences, SHAPES, fixed=False)
    for layer in layers():
        result = plan.attend(q, layer)
        torch.testing.assert_close(result, expected(q, layer, sequences), rtol=0.02, atol=0.02)


def test_a_plan_that_stays_reads_the_newest_tables(attention: FlashInferAttention) -> None:
    q = torch.randn(3, 6 * 64).bfloat16()
    kept = planned(attention, step([(1, 1)] * 3, 8), SHAPES, fixed=True)
    for seed, lengths in enumerate([[(1, 61), (1, 5), (1, 16)], [(1, 17), (1, 100), (1, 2)]]):
        sequences = step(lengths, max(-(-context // BLOCK) for _, context in lengths), seed)
        plan = planned(attention, sequences, SHAPES, fixed=True)
        assert plan.wrappers == kept.wrappers and len(plan.wrappers) == len(SHAPES)
        for layer in layers():
            result = kept.attend(q, layer)
            torch.testing.assert_close(result, expected(q, layer, sequences), rtol=0.02, atol=0.02)
    other = planned(attention, step([(1, 1)] * 2, 8), (SHAPE,), fixed=True)
    assert other.wrappers != kept.wrappers


def test_plans_of_one_step_do_not_share_their_memory(attention: FlashInferAttention) -> None:
    for fixed in (False, True):
        plan = planned(attention, step([(1, 20), (1, 3)], 3), SHAPES, fixed=fixed)
        memory = [wrapper.plans.data_ptr() for wrapper in plan.wrappers.values()]
        assert len(set(memory)) == len(SHAPES)


def test_tensor_cores_where_heads_share_much(attention: FlashInferAttention) -> None:
    for heads, used in ((6, False), (28, True)):
        shape = AttentionShape(heads, 2 if heads == 6 else 4, 64, 1.0)
        plan = planned(attention, step([(1, 4)] * (heads % 5 + 1), 2), (shape,), fixed=True)
        assert plan.wrappers[shape].made["use_tensor_cores"] is used


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"),
    [
        (64, 8, 128),
        (48, 8, 128),
        (16, 2, 128),
        (20, 1, 128),
        (32, 8, 64),
        (9, 3, 64),
        (16, 4, 256),
        (8, 4, 256),
        (24, 1, 256),
    ],
)
def test_partial_results_have_room(
    attention: FlashInferAttention, heads: int, kv_heads: int, dim: int
) -> None:
    shape = AttentionShape(heads, kv_heads, dim, 1.0)
    shapes = shape, shape._replace(window=300)

    def needed(fixed: bool, *lengths: tuple[int, int]) -> int:
        longest = max(-(-context // BLOCK) for _, context in lengths)
        queries, contexts = (torch.tensor(side, dtype=torch.int32) for side in zip(*lengths, strict=True))
        tables = torch.zeros(len(lengths), longest, dtype=torch.int32)
        starts = torch.cat([torch.zeros(1), queries.cumsum(0)]).int()
        wrappers = planned(attention, SequenceTables(tables, starts, contexts), shapes, fixed).wrappers
        return max(wrapper.needed for wrapper in wrappers.values())

    prompts = max(needed(False, (n, n)) for n in range(16, 2200, 16))
    few = max(needed(False, *[(1, 5000)] * n, (n, 3000)) for n in (1, 7, 40))
    decodes = max(needed(True, *[(1, 900)] * n) for n in (1, 192, 256))
    assert max(prompts, few, decodes) > 0
    # No more than a quarter is set aside for nothing.
    reserved = next(
        iter(planned(attention, step([(1, 4)], 1), shapes, fixed=False).wrappers.values())
    ).scratch
    assert max(prompts, few, decodes) > 0.75 * reserved.nbytes


def test_only_widths_that_it_has_kernels_for() -> None:
    dims = 12, 64, 80, 128, 256
    assert [dim for dim in dims if FlashInferAttention.supports(AttentionShape(1, 1, dim, 1.0))] == [
        64,
        128,
        256,
    ]


def test_row_ops_have_the_signatures_that_we_call() -> None:
    flashinfer = pytest.importorskip("flashinfer", reason="FlashInfer is not installed")
    x, weight = torch.empty(2, 64), torch.empty(64)
    inspect.signature(flashinfer.norm.rmsnorm).bind(x, weight, 1e-6)
    inspect.signature(flashinfer.norm.fused_add_rmsnorm).bind(x, x, weight, 1e-6)
    inspect.signature(flashinfer.activation.silu_and_mul).bind(x)
    inspect.signature(flashinfer.activation.gelu_tanh_and_mul).bind(x)
