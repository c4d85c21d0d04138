"""Every backend that computes in 16 bits, against the definition in float32 on the same rounded inputs.

Tolerances are in units of the last place of the dtype: a result is rounded once or twice on its way.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lorikeet_server.device.parcel import Singly, StepParcel
from lorikeet_server.kernels import (
    AttentionLayer,
    AttentionPlan,
    AttentionShape,
    Kernels,
    LinearMode,
    Product,
    SequenceTables,
    select,
)

BLOCK, BLOCKS, WIDTH = 16, 40, 64
ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
MODES: dict[torch.dtype, LinearMode] = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
BACKENDS = [
    pytest.param((name, device, dtype), id=f"{name}-{device}-{dtype}".replace("torch.", ""), marks=marks)
    for name, device, marks in (
        ("reference", "cpu", ()),
        ("reference", "cuda", pytest.mark.gpu),
        ("cuda", "cuda", pytest.mark.gpu),
    )
    for dtype in (torch.bfloat16, torch.float16)
]


@dataclass
class Pair:
    """A backend beside the definition. Each op gets equal numbers in both."""

    tested: Kernels
    defined: Kernels

    def random(self, *shape: int) -> tuple[Tensor, Tensor]:
        """Random numbers that the dtype can hold: on the backend's device, and in float32."""
        values = torch.randn(shape).to(self.tested.dtype)
        return values.to(self.tested.device), values.float()

    def close(self, result: Tensor, expected: Tensor, ulps: float = 1.0) -> None:
        """Within some units of the last place, of each number or of the largest."""
        error = ulps * ULP[self.tested.dtype]
        largest = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(
            result.float().cpu(), expected.float().cpu(), rtol=error, atol=error * largest / 4
        )


@pytest.fixture(scope="module", params=BACKENDS)
def pair(request: pytest.FixtureRequest) -> Pair:
    name, device, dtype = request.param
    return Pair(select(name, device=torch.device(device), dtype=dtype), select("reference"))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("rows", [0, 1, 9, 130])
def test_linear(pair: Pair, rows: int) -> None:
    x, exact = pair.random(rows, 576)
    weight = torch.randn(320, 576) / 24
    mode = MODES[pair.tested.dtype]
    result = pair.tested.linear(x, pair.tested.pack_linear(weight, mode))
    assert result.dtype == pair.tested.dtype
    pair.close(result, pair.defined.linear(exact, pair.defined.pack_linear(weight, mode)))


@pytest.mark.parametrize("offset", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("rows", [1, 130])
def test_norms_and_activation(pair: Pair, rows: int, offset: float) -> None:
    (x, x_exact), (residual, residual_exact) = pair.random(rows, 576), pair.random(rows, 576)
    weight, weight_exact = pair.random(576)
    weight = pair.tested.pack_vector(weight_exact)
    scale = 1e-5, offset
    pair.close(pair.tested.rms_norm(x, weight, *scale), pair.defined.rms_norm(x_exact, weight_exact, *scale))
    normed, added = pair.tested.add_rms_norm(Product(x.clone()), residual.clone(), weight, *scale)
    expected, expected_added = pair.defined.add_rms_norm(
        Product(x_exact), residual_exact, weight_exact, *scale
    )
    pair.close(added, expected_added)
    pair.close(normed, expected, 2)  # whether the sum is rounded before it is normed is left open
    gate_up, gate_up_exact = pair.random(rows, 2 * 576)
    pair.close(pair.tested.silu_mul(Product(gate_up)), pair.defined.silu_mul(Product(gate_up_exact)))
    pair.close(pair.tested.gelu_mul(Product(gate_up)), pair.defined.gelu_mul(Product(gate_up_exact)))


HEADS = [(9, 3, WIDTH), (4, 4, WIDTH), (8, 1, 128)]
STEPS = {
    "decode": [(1, 1), (1, 40), (1, 16), (1, 129)],
    "prefill": [(37, 37), (5, 90)],
    "mixed": [(1, 61), (20, 52), (1, 3), (0, 9)],
}


# Each pair of a dtype and a row of these is a module that FlashInfer compiles, for a minute or more: what a
# GPU is to show within a part's time is one width and one dtype with every kind of score.
SCORES = [(1, None), (33, None), (33, 2.0), (None, 2.0)]
BFLOAT16 = [backend for backend in BACKENDS if torch.bfloat16 in backend.values[0]]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("planned", [False, True])
def test_attention(pair: Pair, heads: tuple[int, int, int], kind: str, planned: bool) -> None:
    attention(pair, heads, kind, (None, None), planned)


@pytest.mark.parametrize("pair", BFLOAT16, indirect=True)
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("planned", [False, True])
def test_attention_with_windows_and_caps(
    pair: Pair, kind: str, scores: tuple[int | None, float | None], planned: bool
) -> None:
    attention(pair, HEADS[0], kind, scores, planned)


def attention(
    pair: Pair,
    heads: tuple[int, int, int],
    kind: str,
    scores: tuple[int | None, float | None],
    planned: bool,
) -> None:
    """Checks a step of `kind`; `scores` are the window and the soft cap."""
    lengths, (query, kv, dim) = STEPS[kind], heads
    free = iter(torch.randperm(BLOCKS).tolist())
    tables = torch.full((len(lengths), 12), -1, dtype=torch.int32)
    for row, (_, context) in enumerate(lengths):
        for column in range(-(-context // BLOCK)):
            tables[row, column] = next(free)
    starts = torch.tensor([0, *(n for n, _ in lengths)]).cumsum(0).int()
    contexts = torch.tensor([context for _, context in lengths]).int()
    sequences = SequenceTables(tables, starts, contexts)
    shape = AttentionShape(query, kv, dim, dim**-0.5, *scores)
    cos_sin = torch.randn(256, dim)
    parts = [pair.random(context, (query + 2 * kv) * dim) for _, context in lengths]
    queries = pair.random(int(starts[-1]), (query + 2 * kv) * dim)
    outputs = []
    for i, kernels in enumerate((pair.tested, pair.defined)):
        k_shape, v_shape = kernels.kv_layout(BLOCKS, BLOCK, kv, dim, kernels.dtype)
        # What an earlier owner left where no context reaches must not matter.
        k_cache = torch.full(k_shape, torch.nan, dtype=kernels.dtype, device=kernels.device)
        v_cache = torch.full(v_shape, torch.nan, dtype=kernels.dtype, device=kernels.device)
        layer = AttentionLayer(shape, k_cache, v_cache, cos_sin.to(kernels.device))
        for row, (_, context) in enumerate(lengths):
            positions = torch.arange(context)
            places = tables[row].long()[positions // BLOCK] * BLOCK + positions % BLOCK
            on_device = [t.to(kernels.device) for t in (positions, places)]
            kernels.rope_and_cache(Product(parts[row][i].clone()), layer, *on_device)
        kernels.reserve((shape,), 0)
        plan = kernels.plan(sequences, (shape,), BLOCK, Singly(kernels.device)) if planned else None
        outputs.append(kernels.paged_attention(queries[i][:, : query * dim], layer, sequences, plan))
    assert outputs[0].dtype == pair.tested.dtype
    pair.close(outputs[0], outputs[1], 4)  # keys and values were rounded too


def test_rotation(pair: Pair) -> None:
    qkv, exact = pair.random(33, 4 * WIDTH)
    cos_sin, positions = torch.randn(64, WIDTH), torch.randperm(64)[:33]
    for kernels, rows in ((pair.tested, qkv), (pair.defined, exact)):
        k_shape, v_shape = kernels.kv_layout(3, BLOCK, 1, WIDTH, kernels.dtype)
        caches = [torch.zeros(s, dtype=kernels.dtype, device=kernels.device) for s in (k_shape, v_shape)]
        places = torch.arange(33)
        places[7] = kernels.spare_place(3, BLOCK)
        layer = AttentionLayer(AttentionShape(2, 1, WIDTH, 1.0), *caches, cos_sin.to(kernels.device))
        kernels.rope_and_cache(Product(rows), layer, positions.to(kernels.device), places.to(kernels.device))
        for cache in caches:
            used = cache[:3].flatten(2).flatten(0, 1).abs().sum(1) > 0
            assert used.nonzero().flatten().tolist() == [i for i in range(33) if i != 7]
    pair.close(qkv, exact)


def test_greedy(pair: Pair) -> None:
    """Logits are float32 in every backend."""
    logits = torch.randn(9, 5000) * 8
    logits[3, [100, 4000]] = 60.0
    logits[4, 17] = torch.nan
    result, expected = pair.tested.greedy(logits.to(pair.tested.device)), pair.defined.greedy(logits)
    assert result.tokens[:4].tolist() == expected.tokens[:4].tolist() and int(result.tokens[3]) == 100
    good = [row for row in range(9) if row != 4]
    torch.testing.assert_close(result.logprobs.cpu()[good], expected.logprobs[good], rtol=1e-5, atol=1e-5)
    assert result.logsumexp.isfinite().tolist() == [row != 4 for row in range(9)]


@pytest.mark.parametrize("pair", BFLOAT16, indirect=True)
def test_fixed_plans_stay_in_place(pair: Pair) -> None:
    """A captured step finds the newest tables where the first ones were, whatever the window of a layer.

    Kernels for decodes alone add up in another order than those for any step, and each rounds once.
    """
    full, one = AttentionShape(4, 2, WIDTH, WIDTH**-0.5), torch.arange(3, dtype=torch.int32)
    shapes = full, full._replace(window=7)
    k_shape, v_shape = pair.tested.kv_layout(BLOCKS, BLOCK, 2, WIDTH, pair.tested.dtype)
    caches = [torch.randn(shape).to(pair.tested.device, pair.tested.dtype) for shape in (k_shape, v_shape)]
    q, _ = pair.random(2, 4 * WIDTH)

    parcel = StepParcel(4096, pair.tested.device)
    pair.tested.reserve(shapes, 2)

    def planned(sequences: SequenceTables) -> AttentionPlan | None:
        parcel.begin()
        plan = pair.tested.plan(sequences, shapes, BLOCK, parcel, fixed=True)
        parcel.send()
        return plan

    def tables(blocks: list[list[int]], contexts: list[int]) -> SequenceTables:
        return SequenceTables(torch.tensor(blocks).int(), one, torch.tensor(contexts).int())

    def attend(sequences: SequenceTables, plan: AttentionPlan | None = None) -> Tensor:
        layers = (AttentionLayer(shape, *caches, torch.empty(0)) for shape in shapes)
        return torch.cat([pair.tested.paged_attention(q, layer, sequences, plan) for layer in layers])

    first, second = tables([[3, 4, 0], [5, 0, 0]], [20, 9]), tables([[8, 9, 7], [1, 2, 0]], [45, 31])
    kept = planned(first)
    pair.close(attend(first, kept), attend(first), ulps=3)
    planned(second)
    pair.close(attend(first, kept), attend(second), ulps=3)
