"""Rotation and cache write over dtype x head width x heads x rows against the definition in torch, through
all of the Python path: on a GPU, and on a CPU under emulation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from cuda_target import Target
from torch import Tensor

from lorikeet_server.kernels import AttentionLayer, AttentionShape, Product, select
from lorikeet_server.kernels.cuda.rope_and_cache import RopeAndCache

DTYPES = [torch.bfloat16, torch.float16]
WIDTHS = [16, 64, 80, 128, 256]
HEADS = [(1, 1), (4, 2), (7, 1), (32, 8)]
ULP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}  # of the number, at most
BLOCKS, BLOCK, POSITIONS = 6, 16, 50


@dataclass
class Case:
    """A layer whose cache is full of what must not change, and the rows of a step."""

    layer: AttentionLayer
    qkv: Tensor
    positions: Tensor
    places: Tensor

    @staticmethod
    def make(
        target: Target,
        rows: int,
        heads: tuple[int, int] = (4, 2),
        width: int = 64,
        dtype: torch.dtype = torch.bfloat16,
    ) -> Case:
        shape = AttentionShape(*heads, width, 1.0)
        cache = BLOCKS + 1, BLOCK, heads[1], width
        angles = torch.arange(POSITIONS).unsqueeze(1) * torch.rand(width // 2)
        tensors = [torch.randn(cache).to(dtype), torch.randn(cache).to(dtype)]
        tensors += [torch.cat((angles.cos(), angles.sin()), 1)]
        layer = AttentionLayer(shape, *(tensor.to(target.device) for tensor in tensors))
        qkv = torch.randn(rows, shape.qkv_width).to(target.device, dtype)
        positions = torch.randint(POSITIONS, (rows,)).to(target.device)
        return Case(layer, qkv, positions, torch.randperm(BLOCKS * BLOCK)[:rows].to(target.device))

    def run(self, target: Target, delta: Tensor | None = None) -> None:
        kernel = RopeAndCache(target.library, target.device)
        kernel(Product(self.qkv, delta), self.layer, self.positions, self.places)

    def copy(self) -> Case:
        layer = replace(self.layer, k_cache=self.layer.k_cache.clone(), v_cache=self.layer.v_cache.clone())
        return replace(self, layer=layer, qkv=self.qkv.clone())

    def defined(self) -> Case:
        """What the definition makes of it."""
        made = self.copy()
        if len(made.qkv):
            kernels = select("reference", device=made.qkv.device, dtype=made.qkv.dtype)
            kernels.rope_and_cache(Product(made.qkv), made.layer, made.positions, made.places)
        return made

    def check(self, expected: Case) -> None:
        """Within a unit of the last place: a multiplication and an addition may be one operation, so that the
        sum of two that nearly cancel out has other last bits than the definition's. Values are copies."""
        values = self.layer.shape.num_kv_heads * self.layer.shape.head_dim
        assert torch.equal(self.layer.v_cache, expected.layer.v_cache)
        assert torch.equal(self.qkv[:, -values:], expected.qkv[:, -values:])
        for result, wanted in (
            (self.qkv, expected.qkv),
            (self.layer.k_cache, expected.layer.k_cache),
        ):
            torch.testing.assert_close(result.float(), wanted.float(), rtol=ULP[self.qkv.dtype], atol=1e-6)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_definition(target: Target, dtype: torch.dtype, width: int, heads: tuple[int, int]) -> None:
    """At places in no order; whatever else is in the cache stays."""
    for rows in (0, 1, 7) if target.emulated and heads == HEADS[-1] else (0, 1, 7, 64):
        case = Case.make(target, rows, heads, width, dtype)
        expected = case.defined()
        case.run(target)
        case.check(expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_read_later_is_what_was_rotated(target: Target, dtype: torch.dtype) -> None:
    """The cache has the same bits as the row, so a step's own keys are no others than a later step's."""
    case = Case.make(target, 7, dtype=dtype)
    case.run(target)
    shape = case.layer.shape
    keys, values = case.qkv[:, shape.q_width :].unflatten(1, (2 * shape.num_kv_heads, -1)).chunk(2, 1)
    assert torch.equal(case.layer.k_cache.flatten(0, 1)[case.places], keys)
    assert torch.equal(case.layer.v_cache.flatten(0, 1)[case.places], values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_adapters_add_is_rotated_too(target: Target, dtype: torch.dtype) -> None:
    """The sum is not rounded before it turns, so a unit of the last place of what went in may be between."""
    case = Case.make(target, 7, (7, 1), 80, dtype)
    delta = torch.randn(case.qkv.shape).to(case.qkv)
    exact = case.copy()
    exact.qkv = (case.qkv.double() + delta.double()).float()
    kernels = select("reference", device=exact.qkv.device)
    kernels.rope_and_cache(Product(exact.qkv), exact.layer, exact.positions, exact.places)
    case.run(target, delta)
    values = case.layer.shape.num_kv_heads * case.layer.shape.head_dim
    assert torch.equal(case.qkv[:, -values:], exact.qkv[:, -values:].to(dtype))
    torch.testing.assert_close(case.qkv.float(), exact.qkv, rtol=ULP[dtype], atol=1e-6)
    for cache, other in (
        (case.layer.k_cache, exact.layer.k_cache),
        (case.layer.v_cache, exact.layer.v_cache),
    ):
        torch.testing.assert_close(cache.float(), other.float(), rtol=ULP[dtype], atol=1e-6)


def test_rows_of_the_spare_place_are_seen_by_nobody(target: Target) -> None:
    case = Case.make(target, 7)
    spare = select("reference").spare_place(BLOCKS, BLOCK)
    case.places[[1, 4, 5]] = spare
    expected = case.defined()
    case.run(target)
    for made in (case, expected):  # several rows are there, in no order
        made.layer.k_cache.flatten(0, 1)[spare] = made.layer.v_cache.flatten(0, 1)[spare] = 0
    case.check(expected)


def test_rows_may_be_parts_of_wider_rows(target: Target) -> None:
    case = Case.make(target, 5)
    expected = case.defined()
    width = case.qkv.shape[1]
    wide = torch.zeros(5, width + 24).to(case.qkv)
    wide[:, 8:-16] = case.qkv
    case.qkv = wide[:, 8:-16]
    case.run(target)
    case.check(expected)
    assert not wide[:, :8].any() and not wide[:, -16:].any()


@pytest.mark.parametrize(
    "outside", [(POSITIONS, 0), (-1, 0), (0, (BLOCKS + 1) * BLOCK), (0, -1), (2**40, 2**40)]
)
def test_a_row_that_is_out_of_range_stays_alone(target: Target, outside: tuple[int, int]) -> None:
    """It is cached nowhere, and what it is asked for is NaN."""
    case = Case.make(target, 5)
    good = replace(case, positions=case.positions[1:], places=case.places[1:], qkv=case.qkv[1:])
    expected = good.defined()
    case.positions[0], case.places[0] = outside
    case.run(target)
    good.check(expected)
    values = case.layer.shape.num_kv_heads * case.layer.shape.head_dim
    assert case.qkv[0, :-values].isnan().all() and case.qkv[0, -values:].isfinite().all()


def changed(case: Case, **tensors: Tensor) -> Case:
    """With other tensors in the layer."""
    return replace(case, layer=replace(case.layer, **tensors))


def narrow(layer: AttentionLayer) -> AttentionLayer:
    """With heads of 8 columns."""
    tensors = {name: getattr(layer, name)[..., :8].contiguous() for name in ("k_cache", "v_cache", "cos_sin")}
    return replace(layer, shape=layer.shape._replace(head_dim=8), **tensors)


REFUSED: dict[str, Callable[[Case], Case]] = {
    "too few rows": lambda case: replace(case, qkv=case.qkv[:2]),
    "a narrow qkv": lambda case: replace(case, qkv=case.qkv[:, :-64]),
    "columns apart": lambda case: replace(case, qkv=case.qkv.t().contiguous().t()),
    "rows that begin between": lambda case: replace(case, qkv=torch.cat((case.qkv, case.qkv), 1)[:, 1:513]),
    "rows of an odd length": lambda case: replace(case, qkv=torch.zeros(3, 514).to(case.qkv)[:, :512]),
    "too few places": lambda case: replace(case, places=case.places[:2]),
    "positions apart": lambda case: replace(case, positions=case.positions.repeat_interleave(2)[::2]),
    "places in two dimensions": lambda case: replace(case, places=case.places.unsqueeze(1)),
    "a table of half heads": lambda case: changed(case, cos_sin=case.layer.cos_sin[:, :32]),
    "a table elsewhere": lambda case: changed(case, cos_sin=case.layer.cos_sin.to("meta")),
    "a cache of other heads": lambda case: changed(case, k_cache=case.layer.k_cache[:, :, :1]),
    "values of other blocks": lambda case: changed(case, v_cache=case.layer.v_cache[:3]),
    "heads outside of entries": lambda case: changed(
        case, k_cache=case.layer.k_cache.transpose(1, 2).contiguous().transpose(1, 2)
    ),
    "narrow heads": lambda case: replace(case, layer=narrow(case.layer), qkv=case.qkv[:, :64].contiguous()),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_before_a_launch(target: Target, change: Callable[[Case], Case]) -> None:
    case = change(Case.make(target, 3))
    before = case.copy()
    with pytest.raises(ValueError, match=r"must|refused"):
        case.run(target)
    assert torch.equal(case.qkv, before.qkv)
    assert torch.equal(case.layer.k_cache, before.layer.k_cache)
    assert torch.equal(case.layer.v_cache, before.layer.v_cache)


def test_other_dtypes_are_refused(target: Target) -> None:
    case = Case.make(target, 3)
    for wrong in (
        replace(case, qkv=case.qkv.float()),
        replace(case, qkv=case.qkv.half()),
        replace(case, positions=case.positions.int()),
        replace(case, places=case.places.int()),
        changed(case, v_cache=case.layer.v_cache.half()),
        changed(case, cos_sin=case.layer.cos_sin.bfloat16()),
    ):
        with pytest.raises(TypeError, match="must be"):
            wrong.run(target)


def test_what_it_supports(target: Target) -> None:
    layer = Case.make(target, 0).layer
    assert RopeAndCache.supports(layer, torch.bfloat16)
    assert not RopeAndCache.supports(layer, torch.float16)  # the cache has another dtype
    assert not RopeAndCache.supports(narrow(layer), torch.bfloat16)


@pytest.mark.gpu
def test_a_captured_graph_reads_where_rows_belong_anew(on_device: Target) -> None:
    """Also where kernels overlap, each on rows that the one before it wrote."""
    case = Case.make(on_device, 64, (32, 8), 128)
    rows, kernel = case.qkv.clone(), RopeAndCache(on_device.library, on_device.device)

    def step() -> None:
        torch.mul(rows, 2, out=case.qkv)
        for _ in range(3):
            kernel(Product(case.qkv), case.layer, case.positions, case.places)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(3):
        case.positions.copy_(torch.randint(POSITIONS, (64,)))
        case.places.copy_(torch.randperm(BLOCKS * BLOCK)[:64])
        eager = case.copy()
        torch.mul(rows, 2, out=eager.qkv)
        torch.cuda.synchronize()
        for _ in range(3):
            eager.run(on_device)
            torch.cuda.synchronize()
        graph.replay()
        assert torch.equal(case.qkv, eager.qkv)
        assert torch.equal(case.layer.k_cache, eager.layer.k_cache)
        assert torch.equal(case.layer.v_cache, eager.layer.v_cache)
