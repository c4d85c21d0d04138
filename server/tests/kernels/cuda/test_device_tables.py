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

from lorikeet_server.kernels import LoraLayout, LoraModule, build
from lorikeet_server.kernels.cuda import LAYOUT, DeviceLoraTables, abi

MODULES = [LoraModule(32, (32, 8, 8)), LoraModule(64, (32,))]


def tables(target: Target, modules: list[LoraModule], slots: int = 3, max_rank: int = 32) -> DeviceLoraTables:
    return DeviceLoraTables(target.library, modules, slots, 300, torch.bfloat16, target.device, max_rank)


def entries(table: abi.Tables) -> np.ndarray:
    """What the kernels would read of a model's first module, as [slots, slices of all modules]."""
    return read(table.entries, abi.ENTRY, table.slots * table.stride).reshape(table.slots, table.stride)


def test_a_move_is_seen_after_the_commit(emulated: Target) -> None:
    found = tables(emulated, MODULES)
    qkv, o = found.tables
    assert (qkv.native.slices, qkv.native.stride, o.native.slices) == (3, 4, 1)
    assert list(qkv.native.column)[:4] == [0, 32, 40, 48]
    assert o.native.entries == qkv.native.entries + 3 * abi.ENTRY.itemsize, "one buffer for all modules"
    fill(qkv, 1, 2, 8, 8)
    fill(o, 1, 0, 5, 32)
    assert not entries(qkv.native)["a"].any()
    found.commit()
    held = o.get(1, 0)
    assert held is not None and held[0].shape == (8, 64), "padded"
    seen = entries(qkv.native)
    assert seen["rank"].tolist() == [[0, 0, 0, 0], [0, 0, 8, 8], [0, 0, 0, 0]]
    assert seen["b"][1, 3] == held[1].data_ptr() and seen["scale"][1, 3] == held[2]
    o.clear_slot(1)
    assert entries(qkv.native)["a"][1, 3] != 0
    found.commit()
    assert entries(qkv.native)["a"][1, 3] == 0 and entries(qkv.native)["a"][1, 2] != 0


def test_an_adapter_in_the_layout_is_used_in_place(emulated: Target) -> None:
    table = tables(emulated, MODULES).tables[0]
    a, b = LAYOUT.place(torch.randn(12, 32).bfloat16(), torch.randn(8, 12).bfloat16())
    table.set_slot(0, 1, a, b, 1.0)
    held = table.get(0, 1)
    assert held is not None and (held[0].data_ptr(), held[1].data_ptr()) == (a.data_ptr(), b.data_ptr())
    assert table.arrays.rank[1, 0] == 16
    assert LoraLayout(rank_unit=8, b_by_rank=False) == LAYOUT


def test_what_the_kernels_cannot_read_is_refused(emulated: Target) -> None:
    found = tables(emulated, [LoraModule(32, (32,)), LoraModule(36, (32,)), LoraModule(32, (32, 12))])
    a, b = torch.randn(8, 32).bfloat16(), torch.randn(32, 8).bfloat16()
    with pytest.raises(TypeError, match="as the activations"):
        found.tables[0].set_slot(0, 0, a.half(), b.half(), 1.0)
    with pytest.raises(ValueError, match="rank 33 is above the 32"):
        found.tables[0].set_slot(0, 0, torch.randn(33, 32).bfloat16(), torch.randn(32, 33).bfloat16(), 1.0)
    with pytest.raises(ValueError, match="multiples of 8"):
        found.tables[1].set_slot(0, 0, torch.randn(8, 36).bfloat16(), b, 1.0)
    with pytest.raises(ValueError, match="multiples of 8"):
        found.tables[2].set_slot(0, 0, a, b, 1.0)
    with pytest.raises(ValueError, match="16 bytes"):
        found.tables[0].set_slot(0, 0, torch.randn(8 * 32 + 1).bfloat16()[1:].view(8, 32), b, 1.0)
    with pytest.raises(ValueError, match="1 to 4 slices"):
        tables(emulated, [LoraModule(32, (8,) * 5)])
    with pytest.raises(ValueError, match="must all be positive"):
        tables(emulated, MODULES, slots=0)
    assert not found.shared.touched


def test_tiles_hold_every_row_once(emulated: Target) -> None:
    """Rows of a tile have its slot, in ascending order; items cover the ranks of each tile of a decode."""
    for rows, slots in itertools.product((0, 1, 7, 8, 9, 64, 65, 255, 256, 257, 300), (1, 3, 300)):
        found = tables(emulated, [LoraModule(16, (16,))], slots)
        for slot in range(0, slots, 2):
            fill(found.tables[0], slot, 0, 8 + slot % 3 * 12, 16)
        found.commit()
        wanted = popularity("half", rows, slots)
        tiles = found.batcher()(wanted)
        height = 8 if rows <= 256 else 64
        assert tiles.tile_rows == height
        at = {name: getattr(tiles.native, name) for name in ("total", "permutation", "tiles", "items")}
        live, items = read(at["total"], np.dtype(np.int32), 2).tolist()
        order = read(at["permutation"], np.dtype(np.int32), rows)
        each = read(at["tiles"], abi.TILE, live)
        seen = [int(order[tile["first"] + i]) for tile in each for i in range(tile["count"])]
        slot_of = [int(tile["slot"]) for tile in each for _ in range(tile["count"])]
        assert [wanted[row] for row in seen] == slot_of
        assert sorted(seen) == [row for row, slot in enumerate(wanted) if slot >= 0]
        assert all(0 < tile["count"] <= height for tile in each)
        assert [int(tile["rank"]) for tile in each] == [stored_rank(int(tile["slot"])) for tile in each]
        if height == 8:
            pieces = [(*tile.tolist()[:3], rank) for tile in each for rank in range(0, int(tile["rank"]), 16)]
            assert [tuple(item.tolist()) for item in read(at["items"], abi.TILE, items)] == pieces


def stored_rank(slot: int) -> int:
    return LAYOUT.padded(8 + slot % 3 * 12) if slot % 2 == 0 else 0


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
    batcher = case.tables.batcher()
    mixes = [[(row * step + step) % 3 for row in range(64)] for step in range(12)]
    expected = [case.run(x, y, mix) for mix in mixes]
    torch.cuda.synchronize()
    torch.cuda._sleep(50_000_000)  # some tens of milliseconds
    results = [case.add(x, y.clone(), batcher(mix)) for mix in mixes]
    assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))
