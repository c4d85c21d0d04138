"""Adapters in memory, the slots that they are in, and the segments of a step, which every backend reads."""

import numpy as np
import pytest
import torch

from lorikeet_server.kernels import (
    PLAIN,
    LoraAdapter,
    LoraForm,
    LoraLayout,
    LoraMatrices,
    LoraModule,
    LoraSegments,
    LoraTables,
)
from lorikeet_server.kernels.lora_adapter import ENTRY


def test_segments_are_in_the_order_of_their_first_rows() -> None:
    batch = LoraSegments.build([3, -1, 0, 3, 0, 5])
    assert batch.permutation.tolist() == [0, 3, 2, 4, 5]
    assert batch.segment_starts.tolist() == [0, 2, 4, 5]
    assert batch.segment_slots.tolist() == [3, 0, 5]
    assert (batch.num_segments, batch.num_rows) == (3, 6)
    # One buffer holds all three, so that a device needs one copy.
    assert batch.segment_slots.data_ptr() + 3 * 4 == batch.buffer.data_ptr() + batch.buffer.nbytes


@pytest.mark.parametrize("slots", [[], [-1], [-1, -1]])
def test_no_segments(slots: list[int]) -> None:
    batch = LoraSegments.build(torch.tensor(slots, dtype=torch.int32))
    assert (batch.num_segments, batch.num_rows, batch.segment_starts.tolist()) == (0, len(slots), [0])


def matrices(
    form: LoraForm, index: int, rank: int, scale: float = 1.0, *, dora: bool = False
) -> LoraMatrices:
    out = form.outputs[index]
    a, b = torch.randn(rank, form.inputs[index]).to(form.dtype), torch.randn(out, rank).to(form.dtype)
    return LoraMatrices(a, b, scale, torch.rand(out) if dora else None)


def same(held: LoraMatrices | None, given: LoraMatrices) -> bool:
    """Whether they are equal, but for zeros beyond the rank that was given."""
    assert held is not None and (held.channel_scale is None) == (given.channel_scale is None)
    rank, pairs = len(given.a), [(held.channel_scale, given.channel_scale)]
    if given.channel_scale is None:
        pairs = []
    pairs += [(held.a[:rank], given.a), (held.b[:, :rank], given.b)]
    assert not held.a[rank:].any() and not held.b[:, rank:].any()
    return held.scale == given.scale and all(torch.equal(*pair) for pair in pairs)


def test_a_slot_is_one_row_at_an_address_that_stays() -> None:
    tables = LoraTables([LoraModule(8, (4, 2)), LoraModule(6, (8,))], 3, torch.float32)
    first, second = tables.tables
    before = [table.entries.ctypes.data for table in tables.tables]
    given = {1: matrices(tables.form, 1, 2, 0.5), 2: matrices(tables.form, 2, 3, 0.25, dora=True)}
    adapter = LoraAdapter.of(tables.form, given)
    tables.put(1, adapter)
    assert before == [table.entries.ctypes.data for table in tables.tables]
    assert before[1] == before[0] + 2 * ENTRY.itemsize
    assert first.get(1, 0) is None and first.get(0, 1) is None
    assert same(first.get(1, 1), given[1]) and same(second.get(1, 0), given[2])
    held = adapter.get(2)
    assert held is not None and second.entries["a"][1, 0] == held.a.data_ptr(), "nothing is copied"
    assert second.entries["rank"].tolist() == [[0], [3], [0]]
    tables.put(1, LoraAdapter.of(tables.form, {0: matrices(tables.form, 0, 1)}))
    assert second.get(1, 0) is None and first.get(1, 1) is None, "what was there before is gone"
    tables.clear(1)
    tables.clear(1)
    assert first.get(1, 0) is None
    assert not tables.entries["a"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [PLAIN, LoraLayout(rank_unit=8), LoraLayout(8, panel=3)])
def test_matrices_are_stored_as_the_layout_says(layout: LoraLayout, dtype: torch.dtype) -> None:
    form = LoraForm.of([LoraModule(6, (4, 10)), LoraModule(5, (3,))], dtype, layout)
    given = {index: matrices(form, index, 3 + 7 * index, 1.5, dora=index == 1) for index in range(3)}
    adapter = LoraAdapter.of(form, given)
    stored = [-(-rank // layout.rank_unit) * layout.rank_unit for rank in (3, 10, 17)]
    assert adapter.entries["rank"].tolist() == stored
    for index, each in given.items():
        held = adapter.get(index)
        assert same(held, each)
        assert held is not None and held.a.is_contiguous()
        at = int(adapter.entries["b"][index]) - adapter.memory.data_ptr()
        stored = adapter.memory[at : at + held.b.nbytes].view(dtype)
        panels = held.b.split(layout.panel)
        assert torch.equal(stored, torch.cat([panel.t().flatten() for panel in panels]))
    addresses = np.concatenate([adapter.entries[side] for side in "abg"])
    assert not (addresses % 64).any()


def test_an_adapter_can_be_copied_elsewhere() -> None:
    form = LoraForm.of([LoraModule(6, (4, 10))], torch.float32)
    given = matrices(form, 1, 3, dora=True)
    adapter = LoraAdapter.of(form, {1: given})
    region = torch.empty(adapter.memory.nbytes + 128, dtype=torch.uint8)[128:]
    copied = adapter.at(region.copy_(adapter.memory))
    adapter.memory.zero_()
    assert copied.get(0) is None and same(copied.get(1), given)
    held = copied.get(1)
    assert held is not None and held.a.data_ptr() == region.data_ptr()


def test_refuses_what_does_not_fit() -> None:
    tables = LoraTables([LoraModule(8, (4,))], 2, torch.float32)
    a, b = torch.randn(2, 8), torch.randn(4, 2)
    for bad in [
        (torch.randn(2, 7), b),
        (torch.randn(0, 8), torch.randn(4, 0)),
        (a, torch.randn(4, 3)),
        (a, torch.randn(5, 2)),
        (a, b, torch.randn(3)),
    ]:
        with pytest.raises(ValueError, match="slice 0 takes"):
            LoraAdapter.of(tables.form, {0: LoraMatrices(*bad[:2], 1.0, *bad[2:])})
    adapter = LoraAdapter.of(tables.form, {0: LoraMatrices(a, b, 1.0)})
    for slot in (-1, 2):
        with pytest.raises(ValueError, match=r"outside 0\.\.1"):
            tables.put(slot, adapter)
        with pytest.raises(ValueError, match=r"outside 0\.\.1"):
            tables.clear(slot)
    for other in (
        LoraForm.of([LoraModule(8, (4,))], torch.float16),
        LoraForm.of([LoraModule(8, (4,))], torch.float32, LoraLayout(panel=2)),
        LoraForm.of([LoraModule(8, (4, 4))], torch.float32),
    ):
        with pytest.raises(ValueError, match="the tables hold adapters of"):
            tables.put(0, LoraAdapter.of(other, {0: LoraMatrices(a, b, 1.0)}))
    with pytest.raises(TypeError, match="float64"):
        LoraForm.of([LoraModule(8, (4,))], torch.float64)
    assert not tables.entries["a"].any()
