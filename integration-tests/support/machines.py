"""One server on two machines, both of them this one: two launchers that share nothing but a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from support.server import Server, free_port


class TwoMachines:
    """Rank 0 and the router on the first, rank 1 on the second; a context manager.

    `roots` has the second's adapters, where they are not those of the first.
    """

    def __init__(self, model: str, roots: Sequence[Sequence[Path]], *args: str) -> None:
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        flags = ["--num-shard", "1", "--threads-per-shard", "1", "--max-shard-restarts", "20", *args]
        self.first, self.second = (
            Server(model, roots[min(rank, len(roots) - 1)], flags, {**place, "RANK": str(rank)})
            for rank in range(2)
        )

    def __enter__(self) -> TwoMachines:
        self.second.spawn()
        try:
            self.first.__enter__()
        except BaseException as error:
            self.second.stop()
            raise AssertionError(f"{error}\nthe second machine:\n{self.second.log()[-4000:]}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.first.stop()
        self.second.stop()
