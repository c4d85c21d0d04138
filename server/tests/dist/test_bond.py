"""The bond between ranks, over a real store in this process."""

import subprocess
import sys
import threading

from torch._C._distributed_c10d import TCPStore

from lorikeet_server.dist.bond import PERIOD_SECONDS, Bond

LATE = """
import builtins, time
from torch._C._distributed_c10d import TCPStore
from lorikeet_server.dist.bond import KEY, Bond

class Late:
    def __init__(self, store):
        self.store, self.sleep = store, time.sleep

    def __del__(self):  # the interpreter is ending
        self.store.set(KEY, "0")
        self.sleep(1)

store = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
bond = Bond(1, lambda: TCPStore("127.0.0.1", store.port, 1, is_master=False))
bond.watch(print)
builtins.late = Late(store)
"""


def open_store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)


def bond_of(rank: int, port: int) -> Bond:
    return Bond(rank, lambda: TCPStore("127.0.0.1", port, 1, is_master=False))


def test_the_others_learn_who_has_left() -> None:
    store, ended = open_store(), [threading.Event() for _ in range(3)]
    bonds = [bond_of(rank, store.port) for rank in range(3)]
    for bond, event in zip(bonds, ended, strict=True):
        bond.watch(event.set)
    bonds[1].sever()
    assert ended[0].wait(60) and ended[2].wait(60)
    assert not ended[1].wait(4 * PERIOD_SECONDS)


def test_all_end_with_the_rank_that_holds_the_store() -> None:
    store, ended = open_store(), threading.Event()
    bond = bond_of(1, store.port)
    bond.watch(ended.set)
    assert not ended.wait(2 * PERIOD_SECONDS)
    del store
    assert ended.wait(60)
    bond.sever()  # nobody is there to be told


def test_news_does_not_abort_a_process_that_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
