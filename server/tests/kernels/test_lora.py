"""The segmented LoRA product over dtype x hidden x rank x popularity x batch, as in Punica's own tests."""

import random
from functools import cache
from itertools import product

import pytest
import torch

from lorikeet_server.kernels import (
    Kernels,
    LoraAdapter,
    LoraLayout,
    LoraMatrices,
    LoraModule,
    LoraSegments,
    LoraTable,
    LoraTables,
)

SLOTS = 40
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = ["distinct", "uniform", "zipf", "identical", "skewed", "base", "half"]
HIDDEN = (1, 16, 100, 576)
RANKS = ((1,), (3,), (8,), (16,), (64,), (100,), (1, 8, 16, 5, 64))
ROWS = (1, 7, 33)


def popularity(kind: str, rows: int) -> list[int]:
    """The adapter slot of each row."""
    zipf = (1 / torch.arange(1, SLOTS + 1) ** 1.5).cumsum(0)
    skewed = [0 if torch.rand(()) < 0.9 else int(torch.randint(SLOTS, ())) for _ in range(rows)]
    return {
        "distinct": [row % SLOTS for row in range(rows)],
        "uniform": torch.randint(SLOTS, (rows,)).tolist(),
        "zipf": torch.searchsorted(zipf, torch.rand(rows) * zipf[-1]).tolist(),
        "identical": [3] * rows,
        "skewed": skewed,
        "base": [-1] * rows,
        "half": [row % 4 if row % 2 else -1 for row in range(rows)],
    }[kind]


def filled(
    layout: LoraLayout, hidden: int, out: tuple[int, ...], ranks: tuple[int, ...], dtype: torch.dtype
) -> LoraTable:
    """A table with mixed ranks and absent modules; every third adapter scales its channels as DoRA does."""
    tables = LoraTables([LoraModule(hidden, out)], SLOTS, dtype, layout)
    for slot in range(SLOTS):
        rank, matrices = ranks[slot % len(ranks)], {}
        for index, width in enumerate(out):
            if (slot + index) % 5 != 4:
                g = torch.rand(width) if slot % 3 == 0 else None
                a, b = torch.randn(rank, hidden), torch.randn(width, rank)
                matrices[index] = LoraMatrices(a, b, 0.25 + slot, g)
        tables.put(slot, LoraAdapter.of(tables.form, matrices))
    return tables.tables[0]


def assert_same(kernels: Kernels, reference: Kernels, table: LoraTable, slots: list[int]) -> None:
    batch = LoraSegments.build(slots)
    x = torch.randn(len(slots), table.in_features)
    y = torch.randn(len(slots), sum(table.out_features))
    result, expected = y.clone(), y.clone()
    kernels.lora(result, x, table, batch)
    reference.lora(expected, x, table, batch)
    largest = float(expected.abs().max()) if slots else 1.0
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=3e-6 * largest)
    untouched = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(result[untouched], y[untouched])


filled_once = cache(filled)  # for tests that change nothing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matrix(kernels: Kernels, reference: Kernels, dtype: torch.dtype, kind: str) -> None:
    for hidden, ranks, rows in product(HIDDEN, RANKS, ROWS):
        table = filled_once(kernels.lora_layout, hidden, (hidden, 3, 70), ranks, dtype)
        assert_same(kernels, reference, table, popularity(kind, rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("hidden", "rank"), [(15, 2), (1537, 17), (96, 512)])
def test_odd_and_large_sizes(
    kernels: Kernels, reference: Kernels, dtype: torch.dtype, hidden: int, rank: int
) -> None:
    table = filled_once(kernels.lora_layout, hidden, (64, 33), (rank,), dtype)
    for rows in (1, 12):
        assert_same(kernels, reference, table, popularity("uniform", rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 255, 256, 257])
def test_batch_sizes(kernels: Kernels, reference: Kernels, kind: str, rows: int) -> None:
    table = filled_once(kernels.lora_layout, 64, (64, 16, 16), (1, 8, 16, 5, 64), torch.float16)
    assert_same(kernels, reference, table, popularity(kind, rows))


def test_a_row_does_not_depend_on_its_batch(kernels: Kernels) -> None:
    table = filled(kernels.lora_layout, 576, (576, 192, 192), (8, 64, 16, 3), torch.float16)
    sizes = range(1, 10)  # of segments, below and above what the kernels take at once
    slots = [slot for slot, rows in enumerate(sizes) for _ in range(rows)]
    random.Random(0).shuffle(slots)
    x, y = torch.randn(len(slots), 576), torch.randn(len(slots), 960)
    whole = y.clone()
    kernels.lora(whole, x, table, LoraSegments.build(slots))
    for row in range(len(slots)):
        alone = y[row : row + 1].clone()
        kernels.lora(alone, x[row : row + 1].clone(), table, LoraSegments.build(slots[row : row + 1]))
        assert torch.equal(alone[0], whole[row])


@pytest.mark.parametrize("panel", [1, 5, 16, 32, 64])
def test_panels_of_any_width_give_the_same(kernels: Kernels, panel: int) -> None:
    slots, x, y = popularity("uniform", 21), torch.randn(21, 100), torch.randn(21, 207)
    own = filled(kernels.lora_layout, 100, (100, 37, 70), (8, 5, 1), torch.float16)
    other = LoraTables([LoraModule(100, (100, 37, 70))], SLOTS, torch.float16, LoraLayout(panel=panel))
    for slot in range(SLOTS):
        matrices = {index: held for index in range(3) if (held := own.get(slot, index)) is not None}
        other.put(slot, LoraAdapter.of(other.form, matrices))
    expected, result = y.clone(), y.clone()
    for to, table in ((expected, own), (result, other.tables[0])):
        kernels.lora(to, x, table, LoraSegments.build(slots))
    assert torch.equal(result, expected) and not torch.equal(result, y)


def test_a_slot_may_change_between_calls(kernels: Kernels, reference: Kernels) -> None:
    table = filled(kernels.lora_layout, 32, (32,), (4,), torch.float32)
    assert_same(kernels, reference, table, [0, 1, 2])
    changed = {0: LoraMatrices(torch.randn(6, 32), torch.randn(32, 6), 2.0)}
    table.of.put(1, LoraAdapter.of(table.of.form, changed))
    table.of.clear(2)
    assert_same(kernels, reference, table, [0, 1, 2])


def test_wrong_arguments(kernels: Kernels) -> None:
    table, batch = filled(kernels.lora_layout, 32, (32,), (4,), torch.float32), LoraSegments.build([0, 1])
    x, y = torch.randn(2, 32), torch.randn(2, 32)
    for bad_y, bad_x in [(y, x[:1]), (y[:1], x), (y, torch.randn(2, 31)), (torch.randn(2, 33), x)]:
        with pytest.raises(ValueError, match="must be"):
            kernels.lora(bad_y, bad_x, table, batch)
    with pytest.raises(TypeError):
        kernels.lora(y, x.half(), table, batch)
