"""What ranks tell each other where they meet, over a real store in this process."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from lorikeet_server.config import GroupConfig
from lorikeet_server.dist.bond import KEY as BROKEN
from lorikeet_server.dist.bond import Bond
from lorikeet_server.dist.meeting import Directory, connect_to_store, directory, exchange, join, own_address
from lorikeet_server.errors import ConfigError

TIMEOUT = timedelta(seconds=60)


def place(rank: int, local_rank: int, port: int) -> GroupConfig:
    return GroupConfig(rank, 4, "127.0.0.1", port, local_rank)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_rank_0_learns_where_the_others_are_and_they_its_token() -> None:
    port = free_port()
    places = [place(rank, rank % 2, port) for rank in range(4)]  # two on each of two machines
    stores = [join(group, "cpu", TIMEOUT) for group in places]
    for group, store in zip(places, stores, strict=True):
        exchange(store, group, f"b:{group.rank}" if group.apart else "")
    first, second, third, _ = [
        directory(store, group) for store, group in zip(stores, places, strict=True)
    ]
    assert first.endpoints == ("", "", "b:2", "b:3")
    assert len(first.token) == 32
    assert second == Directory()
    assert third == Directory(token=first.token)


def test_a_group_on_one_machine_needs_no_directory() -> None:
    port = free_port()
    places = [place(rank, rank, port) for rank in range(4)]
    stores = [join(group, "cpu", TIMEOUT) for group in places]
    for group, store in zip(places, stores, strict=True):
        exchange(store, group, "")
    assert {directory(store, group) for store, group in zip(stores, places, strict=True)} == {Directory()}


def test_a_rank_that_comes_back_breaks_its_old_group_and_joins_the_next() -> None:
    port, broken = free_port(), threading.Event()
    first, lost = place(0, 0, port), place(3, 0, port)
    keeper = join(first, "cpu", TIMEOUT)
    Bond(0, lambda: connect_to_store(first, TIMEOUT)).watch(broken.set)
    join(lost, "cpu", TIMEOUT)
    assert not broken.wait(1)
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(join, lost, "cpu", TIMEOUT)
        assert broken.wait(60)
        assert not again.done()
        del keeper
        keeper = join(first, "cpu", TIMEOUT)
        again.result(60).set("here", "again")
    assert keeper.get("here") == b"again"


def test_the_way_to_an_address_has_an_address_here() -> None:
    assert own_address("127.0.0.1", 29500) == "127.0.0.1"


@pytest.mark.parametrize(
    ("size", "device", "message"),
    [(6, "cpu", "--world-size is 6 here and 4 on rank 0"), (4, "cuda", "--device is cuda here and cpu on")],
)
def test_machines_that_never_will_meet_are_told(size: int, device: str, message: str) -> None:
    """They take no seat, so the right one can still come."""
    port = free_port()
    keeper = join(place(0, 0, port), "cpu", TIMEOUT)
    with pytest.raises(ConfigError, match=message):
        join(GroupConfig(3, size, "127.0.0.1", port, 1), device, TIMEOUT)
    join(place(3, 1, port), "cpu", TIMEOUT).set("here", "at once")
    assert keeper.get("here") == b"at once"


def test_machines_that_overlap_are_told() -> None:
    """Each would break the group of the other, again and again."""
    port = free_port()
    keeper = join(place(0, 0, port), "cpu", TIMEOUT)
    join(place(1, 1, port), "cpu", TIMEOUT)
    with pytest.raises(ConfigError, match="rank 1 is on two machines, whose --rank is 1 and 0"):
        join(place(1, 0, port), "cpu", TIMEOUT)
    assert not keeper.check([BROKEN])
