"""The adapter budget is exact: what fits by bytes fits."""

import random

import pytest

from lorikeet_server.adapters.regions import Regions


def test_first_fit_and_compaction() -> None:
    regions = Regions(100)
    assert [regions.take(key, size) for key, size in enumerate((30, 20, 40))] == [0, 30, 50]
    regions.give(1)
    assert regions.take(3, 30) is None and regions.free == 30
    ((key, shift),) = regions.compact()
    assert (key, shift) == (2, (50, 30, 40))
    assert regions.take(3, 30) == 70 and regions.free == 0
    regions.give(9)  # holds nothing
    assert regions.compact() == []


@pytest.mark.parametrize("seed", range(5))
def test_regions_never_overlap_and_bytes_move_with_them(seed: int) -> None:
    chance, size = random.Random(seed), 1000
    regions, memory, held = Regions(size), bytearray(size), dict[int, bytes]()
    for key in range(400):
        if held and chance.random() < 0.45:
            gone = chance.choice(list(held))
            regions.give(gone)
            del held[gone]
        content = bytes([key % 255 + 1]) * chance.randint(1, 300)
        if len(content) > regions.free:
            continue
        at = regions.take(key, len(content))
        if at is None:
            for moved, shift in regions.compact():
                memory[shift.target : shift.target + shift.size] = memory[
                    shift.source : shift.source + shift.size
                ]
                assert regions.start(moved) == shift.target
            at = regions.take(key, len(content))
        assert at is not None
        memory[at : at + len(content)] = content
        held[key] = content
        assert sum(map(len, held.values())) == size - regions.free
        for other, expected in held.items():
            start = regions.start(other)
            assert memory[start : start + len(expected)] == expected
