"""What the segmented LoRA product promises beside its numbers: bits that stay, rows that stay alone, calls
that are refused; on a GPU, and on a CPU under emulation.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from cuda_target import Target
from lora_cases import TOLERANCE, Case, fill, modules, popularity
from torch import Tensor

from lorikeet_server.device.parcel import StepParcel
from lorikeet_server.kernels import LoraModule
from lorikeet_server.kernels.cuda import DeviceLoraTables


def test_a_row_has_the_same_bits_in_every_step(target: Target) -> None:
    """Alone, in any order, beside any mates, decode or prefill, and again."""
    shape = LoraModule(1048, (40, 8)) if target.emulated else LoraModule(4096, (4096, 1024))
    case = Case.make(target.library, target.device, [shape], [8, 72, 16, 5])
    slots = popularity("half", 260, 4)
    x, y = case.inputs(260)
    whole = case.run(x, y, slots)
    assert torch.equal(case.run(x, y, slots), whole)
    some = 12 if target.emulated else 256
    assert torch.equal(case.run(x[:some], y[:some], slots[:some]), whole[:some])
    order = torch.randperm(some)
    assert torch.equal(case.run(x[order], y[order], [slots[i] for i in order]), whole[order])
    for row in (1, 3, 7):
        alone = case.run(x[row : row + 1], y[row : row + 1], slots[row : row + 1])
        assert torch.equal(alone[0], whole[row])


def test_a_mixed_batch_has_the_bits_of_each_module(target: Target) -> None:
    """Modules share the scratch memory and the tiles, one after the other."""
    case = Case.make(target.library, target.device, modules(target), [8, 16, 64, 1, 32, 5])
    slots = popularity("half", 9, 6)
    inputs = [case.inputs(9, module) for module in range(3)]
    alone = [case.run(x, y, slots, module) for module, (x, y) in enumerate(inputs)]
    tiles = case.tables.batcher()(slots)
    for _ in range(2):
        for module, (x, y) in enumerate(inputs):
            assert torch.equal(case.add(x, y.clone(), tiles, module), alone[module])


def test_shrink_and_expand_may_be_enqueued_apart(target: Target) -> None:
    case = Case.make(target.library, target.device, modules(target), [8, 16])
    x, y = case.inputs(3)
    whole, table, tiles = case.run(x, y, [0, 1, -1]), case.tables.tables[0], case.tables.batcher()([0, 1, -1])
    case.sgmv.shrink(x, table, tiles)
    assert not torch.equal(y, whole)
    case.sgmv.expand(y, table, tiles)
    assert torch.equal(y, whole)


@pytest.mark.parametrize("kind", ["distinct", "half", "identical", "base"])
@pytest.mark.parametrize("rows", [1, 9, 40, 257])
def test_written_alone_it_is_what_is_added_to_zeros(target: Target, rows: int, kind: str) -> None:
    """Over whatever was there; DoRA, which needs the base's product, gives what is found out."""
    case = Case.make(target.library, target.device, modules(target), [8, 16, 64, 1, 32, 5])
    slots = popularity(kind, rows, 6)
    for module in range(3):
        x, y = case.inputs(rows, module)
        delta = torch.full_like(y, torch.nan)
        for most in (None, len(set(slots) - {-1}), 6):
            tiles = case.tables.batcher()(slots, most)
            case.sgmv.write(delta, x, case.tables.tables[module], tiles)
            check_alone(case, x, delta, slots, module)


def check_alone(case: Case, x: Tensor, delta: Tensor, slots: Sequence[int], module: int) -> None:
    added, scaled = case.run(x, torch.zeros_like(delta), slots, module), dora(case, slots, module)
    assert delta[scaled].isnan().all()
    assert torch.equal(delta[~scaled], added[~scaled])


def dora(case: Case, slots: Sequence[int], module: int) -> Tensor:
    """Which values belong to a slice with DoRA."""
    table, found = case.tables.tables[module], []
    for slot in slots:
        entries = [table.get(slot, index) if slot >= 0 else None for index in range(len(table.out_features))]
        found.append([entry is not None and entry[3] is not None for entry in entries])
    widths = torch.tensor(table.out_features)
    return torch.tensor(found).repeat_interleave(widths, dim=1).to(case.tables.device)


def test_a_module_that_no_adapter_targets(target: Target) -> None:
    """Nothing is added to it until an adapter comes, nor after it has gone."""
    case = Case.make(target.library, target.device, [LoraModule(64, (64, 8))], [8, 16])
    slots = [0, 1, 1]
    for rows in (slots, slots * 100):  # decode, prefill
        for slot in (0, 1):
            case.tables.clear(slot)
        case.tables.commit()
        x, y = case.inputs(len(rows))
        assert torch.equal(case.run(x, y, rows), y)
        fill(case.tables, 1, {1: 8})
        case.tables.commit()
        result = case.run(x, y, rows)
        assert not torch.equal(result, y)
        assert case.error(x, y, rows, result) < TOLERANCE[x.dtype]


def test_a_width_that_cannot_be_adapted_is_left_alone(target: Target) -> None:
    """A vocabulary of an odd size."""
    case = Case.make(target.library, target.device, [LoraModule(64, (64,))], [8])
    tables = DeviceLoraTables(
        target.library, [LoraModule(64, (36,))], 1, 4, torch.bfloat16, target.device, max_rank=16
    )
    x, y = (
        torch.randn(2, 64).to(target.device, torch.bfloat16),
        torch.zeros(2, 36).to(target.device, torch.bfloat16),
    )
    tiles, table = tables.batcher()([0, 0]), tables.tables[0]
    case.sgmv(y, x, table, tiles)
    assert not y.any() and not case.sgmv.can_write(table, tiles)
    with pytest.raises(ValueError, match="not multiples of 8 has no product to be written"):
        case.sgmv.write(y, x, table, tiles)


def test_rows_may_be_strided(target: Target) -> None:
    case = Case.make(target.library, target.device, [LoraModule(64, (64,))], [8, 16])
    x, y = case.inputs(5)
    wide_x, wide_y = torch.zeros(5, 96).to(x), torch.zeros(5, 80).to(y)
    wide_x[:, 8:72], wide_y[:, 8:72] = x, y
    before = wide_y.clone()
    case.add(wide_x[:, 8:72], wide_y[:, 8:72], case.tables.batcher()([0, 1, -1, 1, 0]))
    assert torch.equal(wide_y[:, 8:72], case.run(x, y, [0, 1, -1, 1, 0]))
    assert torch.equal(wide_y[:, :8], before[:, :8]) and torch.equal(wide_y[:, 72:], before[:, 72:])


def test_a_bad_row_stays_alone(target: Target) -> None:
    case = Case.make(target.library, target.device, [LoraModule(64, (64,))], [8, 16])
    x, y = case.inputs(4)
    good = case.run(x, y, [0, 0, 1, 1])
    x[1] = torch.nan
    result = case.run(x, y, [0, 0, 1, 1])
    assert result[1].isnan().all()
    assert torch.equal(result[[0, 2, 3]], good[[0, 2, 3]])


def test_what_does_not_fit_is_refused_before_a_launch(target: Target) -> None:
    case = Case.make(target.library, target.device, [LoraModule(64, (64, 8))], [8, 16])
    x, y = case.inputs(2)
    tiles, table = case.tables.batcher()([0, 1]), case.tables.tables[0]
    before = y.clone()
    for bad_y, bad_x in [
        (y, x[:1]),
        (y[:1], x),
        (y, x[:, :56]),
        (y[:, :64], x),
        (y, torch.cat((x, x), 1)[:, 1:65]),
        (y, x.t().contiguous().t()),
        (y, torch.zeros(2, 68).to(x)[:, :64]),
    ]:
        with pytest.raises(ValueError, match="must"):
            case.sgmv(bad_y, bad_x, table, tiles)
    for bad_y, bad_x in [(y, x.float()), (y.half(), x)]:
        with pytest.raises(TypeError, match="must be"):
            case.sgmv(bad_y, bad_x, table, tiles)
    assert torch.equal(y, before)


@pytest.mark.gpu
def test_a_captured_graph_serves_every_mix(on_device: Target) -> None:
    """Captured once with no adapter in the step; replayed for mixes and ranks that came later."""
    case = Case.make(on_device.library, on_device.device, modules(on_device), [8] * 32)
    parcel, rows = StepParcel(1 << 16, on_device.device), 64
    batcher = case.tables.batcher(parcel)
    inputs = [case.inputs(rows, module) for module in range(3)]
    results = [y.clone() for _, y in inputs]
    alone = [torch.empty_like(y) for _, y in inputs]
    parcel.begin()
    tiles = batcher([-1] * rows, 32)
    parcel.send()

    def step() -> None:
        for module, (x, y) in enumerate(inputs):
            case.add(x, results[module].copy_(y), tiles, module)
            case.sgmv.write(alone[module], x, case.tables.tables[module], tiles)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for kind, ranks in [
        ("distinct", [16, 64]),
        ("zipf", [8, 128, 512]),
        ("identical", [32]),
        ("half", [1, 40]),
    ]:
        for slot in range(32):
            slices = range(len(case.tables.form.inputs))
            fill(case.tables, slot, dict.fromkeys(slices, ranks[slot % len(ranks)]))
        case.tables.commit()
        slots = popularity(kind, rows, 32)
        parcel.begin()
        batcher(slots, 32)
        parcel.send()
        graph.replay()
        replayed = [result.clone() for result in results]
        for module, (x, _) in enumerate(inputs):
            check_alone(case, x, alone[module], slots, module)
        for module, (x, y) in enumerate(inputs):
            assert case.error(x, y, slots, replayed[module], module) < TOLERANCE[x.dtype]
            assert torch.equal(case.run(x, y, slots, module), replayed[module])
        graph.replay()
        assert all(torch.equal(*pair) for pair in zip(results, replayed, strict=True))
