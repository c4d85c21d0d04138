"""Rotation, cache writes and paged attention over ragged contexts, chunked prefill and permuted blocks."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lorikeet_server.kernels import AttentionLayer, AttentionShape, Kernels, Product, SequenceTables

BLOCK = 16
MAX_BLOCKS = 64
HEADS = [(9, 3, 64), (4, 4, 16), (8, 1, 80), (4, 2, 128), (2, 1, 6), (12, 1, 32)]  # query, kv, width
SHAPES: list[dict[str, Any]] = [
    {},
    *({"window": window} for window in (1, 5, 40, 256, 300)),
    {"soft_cap": 2.0},
    {"soft_cap": 50.0, "window": 40},
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
RAGGED = [
    (1, 1),
    (1, 40),
    (5, 5),
    (3, 300),
    (1, 256),
    (1, 700),
    (20, 530),
    (0, 9),
    (2, 257),
]  # queries, context


@dataclass
class Paged:
    """One layer's cache, filled with the same random keys and values through the backend's own writes."""

    kernels: Kernels
    layer: AttentionLayer

    @staticmethod
    def make(
        kernels: Kernels,
        heads: tuple[int, int, int],
        dtype: torch.dtype,
        blocks: int,
        window: int | None = None,
    ) -> "Paged":
        k_shape, v_shape = kernels.kv_layout(blocks, BLOCK, heads[1], heads[2], dtype)
        cos_sin = torch.randn(MAX_BLOCKS * BLOCK, heads[2], generator=torch.Generator().manual_seed(1))
        caches = torch.zeros(k_shape, dtype=dtype), torch.zeros(v_shape, dtype=dtype)
        shape = AttentionShape(*heads, heads[2] ** -0.5, window)
        return Paged(kernels, AttentionLayer(shape, *caches, cos_sin))

    def reshaped(self, **changes: Any) -> "Paged":
        """The same cache behind a layer of another shape."""
        shape = self.layer.shape._replace(**changes)
        return replace(self, layer=replace(self.layer, shape=shape))

    def write(self, qkv: Tensor, positions: Tensor, blocks: Tensor) -> None:
        slots = blocks.long()[positions // BLOCK] * BLOCK + positions % BLOCK
        self.kernels.rope_and_cache(Product(qkv), self.layer, positions, slots)

    def attend(self, q: Tensor, blocks: Tensor, lengths: list[tuple[int, int]]) -> Tensor:
        starts = torch.tensor([0] + [n for n, _ in lengths]).cumsum(0).int()
        contexts = torch.tensor([context for _, context in lengths]).int()
        return self.kernels.paged_attention(q, self.layer, SequenceTables(blocks, starts, contexts))


def tables(lengths: list[tuple[int, int]]) -> Tensor:
    """Permuted block tables; entries past a context point nowhere."""
    needed = [-(-context // BLOCK) for _, context in lengths]
    free = torch.randperm(sum(needed)).int()
    blocks = torch.full((len(lengths), MAX_BLOCKS), -1, dtype=torch.int32)
    for row, taken in enumerate(free.split(needed)):
        blocks[row, : len(taken)] = taken
    return blocks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
def test_matches_the_reference(
    kernels: Kernels, reference: Kernels, heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    width = (heads[0] + 2 * heads[1]) * heads[2]
    blocks = tables(RAGGED)
    pair = [Paged.make(each, heads, dtype, int(blocks.max()) + 1) for each in (kernels, reference)]
    for row, (_, context) in enumerate(RAGGED):
        qkv = torch.randn(context, width)
        rotated = [qkv.clone(), qkv.clone()]
        for paged, copy in zip(pair, rotated, strict=True):
            paged.write(copy, torch.arange(context), blocks[row])
        torch.testing.assert_close(rotated[0], rotated[1], rtol=1e-6, atol=1e-6)
    q = torch.randn(sum(n for n, _ in RAGGED), width)[:, : heads[0] * heads[2]]
    for changes in SHAPES:
        result, expected = (paged.reshaped(**changes).attend(q, blocks, RAGGED) for paged in pair)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", HEADS)
def test_integers_stand_for_their_scale(kernels: Kernels, heads: tuple[int, int, int]) -> None:
    """Attention over integers is that over the floats that they stand for, the nearest there are."""
    if kernels.name == "reference":
        pytest.skip("only the CPU kernels keep integers")
    kv, dim, context = heads[1], heads[2], 300
    blocks = tables([(3, context)])
    qkv = torch.randn(context, (heads[0] + 2 * kv) * dim) * torch.logspace(-3, 0, context).unsqueeze(1)
    packed, plain = (
        Paged.make(kernels, heads, kind, int(blocks.max()) + 1) for kind in (torch.int16, torch.float32)
    )
    rotated = qkv.clone()
    packed.write(rotated, torch.arange(context), blocks[0])
    stood_for = rotated.clone()
    keys_and_values = stood_for[:, heads[0] * dim :].view(context, 2 * kv, dim)
    scales = keys_and_values.abs().amax(-1, keepdim=True) / 32767
    keys_and_values.copy_((keys_and_values / scales).round() * scales)
    plain.layer.cos_sin[:, : dim // 2], plain.layer.cos_sin[:, dim // 2 :] = 1, 0  # rotates nothing
    plain.write(stood_for, torch.arange(context), blocks[0])
    q = rotated[-3:, : heads[0] * dim]
    results = [paged.attend(q, blocks, [(3, context)]) for paged in (packed, plain)]
    # What lies between two integers may become either.
    torch.testing.assert_close(*results, rtol=0, atol=3e-4)


def test_only_a_quantised_base_in_16_bits_has_integers(kernels: Kernels) -> None:
    integers = torch.float32 if kernels.name == "reference" else torch.int16
    assert kernels.kv_dtype("float16", quantised=True) is integers
    for mode, quantised in (("float32", True), ("float16", False), ("bfloat16", False)):
        assert kernels.kv_dtype(mode, quantised=quantised) is torch.float32


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_in_integers(kernels: Kernels, wrong: float) -> None:
    if kernels.name == "reference":
        pytest.skip("only the CPU kernels keep integers")
    heads, blocks = (2, 1, 6), tables([(1, 2)])
    paged = Paged.make(kernels, heads, torch.int16, int(blocks.max()) + 1)
    qkv = torch.randn(2, 4 * 6)
    qkv[0, -1] = wrong
    paged.write(qkv, torch.arange(2), blocks[0])
    assert not paged.attend(qkv[1:, :12], blocks, [(1, 2)]).isfinite().all()


def test_a_window_sees_what_a_shorter_context_does(kernels: Kernels, reference: Kernels) -> None:
    """The definition of a window, in both: attention over the last keys alone."""
    heads, context, window = (4, 2, 32), 100, 23
    qkv = torch.randn(context, 8 * 32)
    for each in (kernels, reference):
        blocks = tables([(1, context), (1, window)])
        paged = Paged.make(each, heads, torch.float32, int(blocks.max()) + 1)
        paged = replace(paged, layer=replace(paged.layer, cos_sin=torch.ones(1024, 32) * 0.5))
        paged.write(qkv.clone(), torch.arange(context), blocks[0])
        paged.write(qkv[-window:].clone(), torch.arange(window), blocks[1])
        q = torch.randn(1, 4 * 32)
        seen = paged.reshaped(window=window).attend(q, blocks[:1].clone(), [(1, context)])
        torch.testing.assert_close(seen, paged.attend(q, blocks[1:].clone(), [(1, window)]))


def test_a_cap_bounds_what_scores_say(kernels: Kernels, reference: Kernels) -> None:
    """The definition of a soft cap, in both: huge scores of either sign become the cap."""
    for each in (kernels, reference):
        blocks = tables([(1, 2)])
        paged = Paged.make(each, (1, 1, 4), torch.float32, int(blocks.max()) + 1)
        k_v = torch.tensor([[1.0, 0, 0, 0, 1, 0, 0, 0], [-1.0, 0, 0, 0, 0, 1, 0, 0]])
        qkv = torch.cat((torch.zeros(2, 4), k_v), 1)
        layer = replace(
            paged.layer, cos_sin=torch.tensor([[1.0, 1, 0, 0]]).expand(MAX_BLOCKS, 4).contiguous()
        )
        paged = replace(paged, layer=layer)
        paged.write(qkv, torch.arange(2), blocks[0])
        seen = paged.reshaped(soft_cap=0.5).attend(torch.tensor([[1e4, 0, 0, 0]]), blocks, [(1, 2)])
        expected = torch.tensor([0.5, -0.5]).softmax(0)
        torch.testing.assert_close(seen[0], torch.tensor([*expected.tolist(), 0, 0]))


@pytest.mark.parametrize("window", [None, 20, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_chunks_blocks_or_mates(
    kernels: Kernels, dtype: torch.dtype, window: int | None
) -> None:
    heads, context = (6, 2, 64), 600
    qkv = torch.randn(context, 10 * 64)
    results = []
    for chunk in (context, 96, 1):
        lengths = [(0, context), (0, 48)]
        blocks = tables(lengths)  # another permutation each time
        paged = Paged.make(kernels, heads, dtype, int(blocks.max()) + 1, window)
        rows = []
        for first in range(0, context, chunk):
            positions = torch.arange(first, min(first + chunk, context))
            part = qkv[positions]
            paged.write(part, positions, blocks[0])
            lengths = [(len(positions), int(positions[-1]) + 1), (0, 48)]
            rows.append(paged.attend(part[:, : 6 * 64], blocks, lengths))
        results.append(torch.cat(rows))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("window", [None, 20, 400])
def test_many_sequences_give_the_bits_of_one(kernels: Kernels, window: int | None) -> None:
    """Few sequences split a long context over threads, many do not; the result is the same."""
    heads, lengths = (3, 1, 64), [(1, 900 - 7 * i) for i in range(12)]
    blocks = tables(lengths)
    paged = Paged.make(kernels, heads, torch.float16, int(blocks.max()) + 1, window)
    for row, (_, context) in enumerate(lengths):
        paged.write(torch.randn(context, 5 * 64), torch.arange(context), blocks[row])
    q = torch.randn(12, 3 * 64)
    together = paged.attend(q, blocks, lengths)
    for row, length in enumerate(lengths):
        alone = paged.attend(q[row : row + 1].clone(), blocks[row : row + 1].clone(), [length])
        assert torch.equal(alone[0], together[row])


def test_negative_slots_write_nothing(kernels: Kernels) -> None:
    paged = Paged.make(kernels, (2, 1, 16), torch.float32, 2)
    slots = torch.tensor([-1, 5])
    kernels.rope_and_cache(Product(torch.ones(2, 64)), paged.layer, torch.tensor([0, 1]), slots)
    assert paged.layer.k_cache.count_nonzero() == 16
    assert paged.layer.v_cache.count_nonzero() == 16


def test_wrong_arguments(kernels: Kernels) -> None:
    paged = Paged.make(kernels, (2, 1, 16), torch.float32, 2)
    q, blocks = torch.randn(1, 32), torch.tensor([[0, 1]], dtype=torch.int32)
    paged.attend(q, blocks, [(1, 32)])
    with pytest.raises(ValueError, match="outside the cache"):
        paged.attend(q, blocks + 1, [(1, 32)])
    with pytest.raises(ValueError, match="too narrow"):
        paged.attend(q, blocks, [(1, 33)])
    with pytest.raises(ValueError, match="number of rows"):
        paged.attend(q, blocks, [(2, 32)])
    with pytest.raises(ValueError, match="smaller than"):
        paged.attend(torch.randn(3, 32), blocks, [(3, 2)])
    with pytest.raises(TypeError, match="block_tables"):
        paged.attend(q, blocks.long(), [(1, 32)])
    with pytest.raises(ValueError, match="q must be"):
        paged.attend(torch.randn(1, 33), blocks, [(1, 32)])
    with pytest.raises(ValueError, match="k_cache must be"):
        other = replace(paged.layer, shape=AttentionShape(2, 2, 16, 1.0))
        Paged(kernels, other).attend(q, blocks, [(1, 32)])
    with pytest.raises(ValueError, match="positions"):
        paged.write(torch.randn(1, 64), torch.tensor([MAX_BLOCKS * BLOCK]), torch.zeros(MAX_BLOCKS + 1))
    with pytest.raises(ValueError, match="slot_mapping"):
        paged.write(torch.randn(1, 64), torch.tensor([0]), torch.tensor([2]))
    for shape in [(4, 15, 1, 16), (4, 0, 1, 16), (4, 16, 1, 15), (4, 16, 1, 514)]:
        with pytest.raises(ValueError, match="must be"):
            kernels.kv_layout(*shape, torch.float32)
    with pytest.raises(TypeError):
        kernels.kv_layout(4, 16, 1, 16, torch.float64)
