"""The model's adapter tables in one buffer, and the tiles of a step."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_target import Target
from lora_cases import Case, fill, popularity

from lorikeet_server.device.parcel import StepParcel
from lorikeet_server.kernels import LoraAdapter, LoraLayout, LoraMatrices, LoraModule
from lorikeet_server.kernels.cpu import build
from lorikeet_server.kernels.cuda import DeviceLoraTables, abi
from lorikeet_server.kernels.lora_adapter import ENTRY

MODULES = [LoraModule(32, (32, 8, 8)), LoraModule(64, (32,))]


def tables(target: Target, modules: list[LoraModule], slots: int = 3, max_rank: int = 32) -> DeviceLoraTables:
    return DeviceLoraTables(target.library, modules, slots, 300, torch.bfloat16, target.device, max_rank)


def entries(table: abi.Tables) -> np.ndarray:
    """What the kernels would read of a model's first module, as [slots + 1, slices of all modules]."""
    return read(table.entries, ENTRY, (table.slots + 1) * table.stride).reshape(-1, table.stride)


def test_a_move_is_seen_after_the_commit(emulated: Target) -> None:
    found = tables(emulated, MODULES)
    qkv, o = (found.native[table] for table in found.tables)
    assert (qkv.slices, qkv.stride, o.slices) == (3, 4, 1)
    assert list(qkv.column)[:4] == [0, 32, 40, 48]
    assert o.entries == qkv.entries + 3 * ENTRY.itemsize, "one buffer for all modules"
    fill(found, 1, {2: 8, 3: 5})
    assert not entries(qkv)["a"].any()
    found.commit()
    held = found.tables[1].get(1, 0)
    assert held is not None and held.a.shape == (8, 64), "padded"
    seen = entries(qkv)
    assert seen["rank"].tolist() == [[0, 0, 0, 0], [0, 0, 8, 8], [0, 0, 0, 0], [0, 0, 8, 8]], "largest last"
    assert seen["b"][1, 3] == held.b.data_ptr() and seen["scale"][1, 3] == held.scale
    assert tile_ranks(found, [1]) == [8]
    fill(found, 1, {2: 8})
    assert entries(qkv)["a"][1, 3] != 0
    found.commit()
    assert entries(qkv)["a"][1, 3] == 0 and entries(qkv)["a"][1, 2] != 0
    found.clear(1)
    found.commit()
    assert not entries(qkv)["a"].any() and not entries(qkv)["rank"].any()
    assert tile_ranks(found, [1]) == [0]


def test_what_the_kernels_cannot_read_is_refused(emulated: Target) -> None:
    found = tables(emulated, [LoraModule(32, (32,)), LoraModule(36, (32,)), LoraModule(32, (32, 12))])
    assert found.form.layout == LoraLayout(rank_unit=8)
    with pytest.raises(ValueError, match="rank 40 is above the 32"):
        fill(found, 0, {0: 33})
    with pytest.raises(ValueError, match="multiples of 8, not 36 -> 32"):
        fill(found, 0, {0: 8, 1: 8})
    with pytest.raises(ValueError, match="multiples of 8, not 32 -> 32"):
        fill(found, 0, {2: 8})
    fits = LoraAdapter.of(found.form, {0: LoraMatrices(torch.randn(8, 32), torch.randn(32, 8), 1.0)})
    with pytest.raises(ValueError, match="16 bytes"):
        found.put(0, fits.at(torch.empty(fits.memory.nbytes + 2, dtype=torch.uint8)[2:]))
    with pytest.raises(ValueError, match="must be on cpu, not on meta"):
        found.put(0, fits.at(fits.memory.to("meta")))
    with pytest.raises(ValueError, match="1 to 4 slices"):
        tables(emulated, [LoraModule(32, (8,) * 5)])
    with pytest.raises(ValueError, match="must all be positive"):
        tables(emulated, MODULES, slots=0)
    assert not found.entries["a"].any() and found.held == [None] * 3


def test_tiles_hold_every_row_once(emulated: Target) -> None:
    """Rows of a tile have its slot, in ascending order; items cover the ranks of each tile of a decode."""
    for rows, slots in itertools.product((0, 1, 7, 8, 9, 64, 65, 255, 256, 257, 300), (1, 3, 300)):
        found = tables(emulated, [LoraModule(16, (16,))], slots)
        for slot in range(0, slots, 2):
            fill(found, slot, {0: 8 + slot % 3 * 12})
        found.commit()
        wanted = popularity("half", rows, slots)
        tiles = found.batcher()(wanted)
        height = 8 if rows <= 256 else 64
        assert tiles.tile_rows == height
        at = {name: getattr(tiles.native, name) for name in ("total", "permutation", "tiles", "items")}
        live, items, every = read(at["total"], np.dtype(np.int32), 3).tolist()
        order = read(at["permutation"], np.dtype(np.int32), rows)
        each = read(at["tiles"], abi.TILE, live)
        seen = [int(order[tile["first"] + i]) for tile in each for i in range(tile["count"])]
        slot_of = [int(tile["slot"]) for tile in each for _ in range(tile["count"])]
        assert [wanted[row] for row in seen] == slot_of
        assert sorted(seen) == [row for row, slot in enumerate(wanted) if slot >= 0]
        assert all(0 < tile["count"] <= height for tile in each)
        assert [int(tile["rank"]) for tile in each] == [stored_rank(int(tile["slot"])) for tile in each]
        idle = read(at["tiles"], abi.TILE, every)[live:]
        if height == 8:
            assert all(tile["slot"] < 0 and 0 < tile["count"] <= height for tile in idle)
            left = [int(order[tile["first"] + i]) for tile in idle for i in range(tile["count"])]
            assert left == [row for row, slot in enumerate(wanted) if slot < 0]
            pieces = [(*tile.tolist()[:3], rank) for tile in each for rank in range(0, int(tile["rank"]), 16)]
            assert [tuple(item.tolist()) for item in read(at["items"], abi.TILE, items)] == pieces


def test_a_captured_batch_has_room_for_others(emulated: Target) -> None:
    """Its tiles are as many as so many rows of so many adapters, and of none, can give."""
    batcher = tables(emulated, [LoraModule(16, (16,))], 64).batcher()
    one, other = [5] * 64, [3] * 9 + [-1] * 46 + [7] * 9
    assert batcher(one).most == 8 and batcher(other).most == 2 + 6 + 2
    assert batcher(one, 2).most == batcher(other, 2).most == 3 + 61 // 8
    assert batcher(one, 64).most == batcher(one, 99).most == 64
    assert batcher(one, 2).memory.numel() == batcher(one).memory.numel()
    assert not batcher(one).captured and batcher(one, 2).captured
    with pytest.raises(ValueError, match="64 tiles of rows are more than the 10 that 2 adapters give"):
        batcher(list(range(64)), 2)


def stored_rank(slot: int) -> int:
    return (8, 24, 32)[slot % 3] if slot % 2 == 0 else 0


def tile_ranks(found: DeviceLoraTables, row_slots: list[int]) -> list[int]:
    """The largest rank that each tile of a step is cut for."""
    batch = found.batcher()(row_slots)
    live = int(read(batch.native.total, np.dtype(np.int32), 1)[0])
    ranks: list[int] = read(batch.native.tiles, abi.TILE, live)["rank"].tolist()
    return ranks


def read(address: int, kind: np.dtype, count: int) -> np.ndarray:
    raw = (ctypes.c_char * (count * kind.itemsize)).from_address(address)
    return np.frombuffer(raw, kind)


def test_rows_that_do_not_fit_are_refused(emulated: Target) -> None:
    batcher = tables(emulated, MODULES).batcher()
    with pytest.raises(ValueError, match=r"adapter slot 3 is outside 0\.\.2"):
        batcher([0, 3])
    with pytest.raises(ValueError, match="301 rows, the tables were made for 300"):
        batcher([0] * 301)


def test_another_library_is_refused() -> None:
    with pytest.raises(OSError, match="has no lorikeet_struct_bytes"):
        abi.load(Path(build.library()))


@pytest.mark.gpu
def test_fillings_in_flight_do_not_disturb_each_other(on_device: Target) -> None:
    """More steps than there are pinned buffers are enqueued before the device has done the first."""
    case = Case.make(on_device.library, on_device.device, [LoraModule(512, (512,))], [8, 16, 32])
    x, y = case.inputs(64)
    parcel = StepParcel(1 << 16, on_device.device)
    batcher = case.tables.batcher(parcel)
    mixes = [[(row * step + step) % 3 for row in range(64)] for step in range(12)]
    expected = [case.run(x, y, mix) for mix in mixes]
    torch.cuda.synchronize()
    torch.cuda._sleep(50_000_000)  # some tens of milliseconds
    results = []
    for mix in mixes:
        parcel.begin()
        tiles = batcher(mix)
        parcel.send()
        results.append(case.add(x, y.clone(), tiles))
    assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))
