"""The same seed and request give the same tokens, whatever runs beside it, and after a restart."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path

from support.server import Server, token_ids

SAMPLED = {
    "do_sample": True,
    "temperature": 1.3,
    "top_k": 40,
    "top_p": 0.95,
    "seed": 1234,
    "max_new_tokens": 40,
}


def sample(server: Server, index: int, **changes: object) -> list[int]:
    return token_ids(
        server.generate("Roll the dice", f"a{index}" if index else None, **{**SAMPLED, **changes})
    )


def test_d1_a_seed_is_enough(tiny: Path, tiny_adapters: Path) -> None:
    with Server(str(tiny), [tiny_adapters], ["--dtype", "float32"]) as server:
        alone = sample(server, 0)
        assert sample(server, 0, seed=1235) != alone
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            noise = [
                pool.submit(sample, server, 1 + i % 15, seed=i, max_new_tokens=10 + i) for i in range(60)
            ]
            mixed = [pool.submit(sample, server, 0) for _ in range(40)]
            assert {tuple(future.result()) for future in mixed} == {tuple(alone)}
            [future.result() for future in noise]
    with Server(str(tiny), [tiny_adapters], ["--dtype", "float32"]) as server:
        assert sample(server, 0) == alone
