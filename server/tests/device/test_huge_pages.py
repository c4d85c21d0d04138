"""Mappings that begin with a huge page."""

import mmap
from pathlib import Path

import pytest

from lorikeet_server.device.huge_pages import HUGE_PAGE, filling, mapping


@pytest.mark.parametrize("size", [1, 4096, HUGE_PAGE, 3 * HUGE_PAGE + 5])
def test_a_mapping_is_zero_writable_and_starts_a_page(size: int) -> None:
    memory = mapping(size)
    assert memory.shape == (size,) and memory.data_ptr() % HUGE_PAGE == 0
    assert not memory.any()
    assert int(memory.fill_(1).sum()) == size


def test_mappings_are_apart_and_outlive_each_other() -> None:
    first, second = mapping(HUGE_PAGE), mapping(HUGE_PAGE)
    first.fill_(1)
    second.fill_(2)
    del first
    third = mapping(HUGE_PAGE).fill_(3)
    assert bool((second == 2).all()) and bool((third == 3).all())


def test_a_page_that_is_begun_is_not_taken_whole() -> None:
    size, pages = HUGE_PAGE * 3 // 2, Path("/proc/self/statm")
    before = int(pages.read_text().split()[1])
    held = [mapping(size).fill_(1) for _ in range(16)]
    taken = (int(pages.read_text().split()[1]) - before) * mmap.PAGESIZE
    assert taken < len(held) * size + HUGE_PAGE


@pytest.mark.parametrize(
    ("size", "filled"),
    [
        (1, 1),
        (HUGE_PAGE * 7 // 8 - 1, HUGE_PAGE * 7 // 8 - 1),
        (HUGE_PAGE * 7 // 8, HUGE_PAGE),
        (HUGE_PAGE, HUGE_PAGE),
        (HUGE_PAGE + 1, HUGE_PAGE + 1),
        (10 * HUGE_PAGE + 1, 11 * HUGE_PAGE),
    ],
)
def test_a_last_page_is_filled_where_it_is_nearly_full_or_one_of_many(size: int, filled: int) -> None:
    assert filling(size) == filled
