"""The slot table and the per-step segments, which every backend reads."""

import pytest
import torch

from lorikeet_server.kernels import LoraLayout, LoraSegments, LoraTable, rank_major


def test_segments_are_sorted_and_stable() -> None:
    batch = LoraSegments.build([3, -1, 0, 3, 0, 5])
    assert batch.permutation.tolist() == [2, 4, 0, 3, 5]
    assert batch.segment_starts.tolist() == [0, 2, 4, 5]
    assert batch.segment_slots.tolist() == [0, 3, 5]
    assert (batch.num_segments, batch.num_rows) == (3, 6)
    # One buffer holds all three, so that a device needs one copy.
    assert batch.segment_slots.data_ptr() + 3 * 4 == batch.buffer.data_ptr() + batch.buffer.nbytes


@pytest.mark.parametrize("slots", [[], [-1], [-1, -1]])
def test_no_segments(slots: list[int]) -> None:
    batch = LoraSegments.build(torch.tensor(slots, dtype=torch.int32))
    assert (batch.num_segments, batch.num_rows, batch.segment_starts.tolist()) == (0, len(slots), [0])


def test_addresses_stay() -> None:
    table = LoraTable(8, (4, 2), 3)
    arrays = (table.arrays.a, table.arrays.b, table.arrays.rank, table.arrays.scale, table.arrays.dtype)
    before = [array.data_ptr() for array in arrays]
    a, b = torch.randn(2, 8), rank_major(torch.randn(2, 2))
    table.set_slot(1, 1, a, b, 0.5)
    assert before == [array.data_ptr() for array in arrays]
    assert table.arrays.a[1, 1] == a.data_ptr()
    assert table.arrays.b[1, 1] == b.data_ptr(), "a rank-major B is used in place"
    entry = table.get(1, 1)
    assert entry is not None
    assert torch.equal(entry[0], a) and torch.equal(entry[1], b) and entry[2:] == (0.5, None)
    table.clear_slot(1)
    table.clear_slot(1)
    assert table.get(1, 1) is None
    assert table.arrays.a.count_nonzero() == 0


def test_other_layouts_are_copied() -> None:
    table = LoraTable(6, (4,), 1)
    a, b = torch.randn(6, 2).t(), torch.randn(4, 2)
    table.set_slot(0, 0, a, b, 1.0)
    entry = table.get(0, 0)
    assert entry is not None and entry[0].is_contiguous() and entry[1].t().is_contiguous()
    assert torch.equal(entry[0], a) and torch.equal(entry[1], b)


def test_a_layout_pads_ranks_and_turns_b() -> None:
    table = LoraTable(6, (4,), 1, LoraLayout(rank_unit=8, b_by_rank=False))
    a, b = torch.randn(3, 6), torch.randn(4, 3)
    table.set_slot(0, 0, a, rank_major(b), 1.0)
    entry = table.get(0, 0)
    assert entry is not None and entry[0].is_contiguous() and entry[1].is_contiguous()
    assert (table.arrays.rank[0, 0], entry[0].shape, entry[1].shape) == (8, (8, 6), (4, 8))
    assert torch.equal(entry[0][:3], a) and torch.equal(entry[1][:, :3], b)
    assert not entry[0][3:].any() and not entry[1][:, 3:].any()
    table.set_slot(0, 0, entry[0], entry[1], 1.0)
    assert table.arrays.a[0, 0] == entry[0].data_ptr(), "what is in the layout already is used in place"


def test_refuses_what_does_not_fit() -> None:
    table = LoraTable(8, (4,), 2)
    a, b = torch.randn(2, 8), torch.randn(4, 2)
    for bad in [
        (2, 0, a, b, 1.0),
        (-1, 0, a, b, 1.0),
        (0, 1, a, b, 1.0),
        (0, 0, torch.randn(2, 7), b, 1.0),
        (0, 0, torch.randn(0, 8), torch.randn(4, 0), 1.0),
        (0, 0, a, torch.randn(4, 3), 1.0),
        (0, 0, a, torch.randn(5, 2), 1.0),
        (0, 0, a, b, 1.0, torch.randn(3)),
    ]:
        with pytest.raises(ValueError, match=r"must be|outside"):
            table.set_slot(*bad)
    with pytest.raises(TypeError):
        table.set_slot(0, 0, a.half(), b, 1.0)
    with pytest.raises(TypeError):
        table.set_slot(0, 0, a.double(), b.double(), 1.0)
    assert table.arrays.a.count_nonzero() == 0
