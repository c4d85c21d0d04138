"""A thousand registered adapters on eight device slots and a small host budget: each answers as itself."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path

from support.models import write_adapter
from support.peft_oracle import Oracle
from support.server import Server, token_ids

COUNT, TOKENS, PROMPT = 1000, 6, "one of a thousand"


def test_a_thousand_adapters_on_eight_slots(tiny: Path, tmp_path: Path) -> None:
    for index in range(COUNT):
        write_adapter(tmp_path / f"t{index}", rank=1 + index % 8, seed=1000 + index)
    arguments = [
        "--dtype",
        "float32",
        "--max-active-adapters",
        "8",
        "--adapter-host-bytes",
        str(2 << 20),
        "--max-adapter-bytes",
        str(1 << 20),
    ]
    with Server(str(tiny), [tmp_path], arguments) as server:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(
                pool.map(
                    lambda index: token_ids(
                        server.generate(PROMPT, f"t{index}", max_new_tokens=TOKENS, ignore_eos_token=True)
                    ),
                    range(COUNT),
                )
            )
        prompt = [token["id"] for token in server.client.post("/tokenize", json={"inputs": PROMPT}).json()]
        metrics = server.metrics()
        oracle = Oracle(tiny)
        for index in range(0, COUNT, 50):
            assert answers[index] == oracle.greedy(prompt, TOKENS, tmp_path / f"t{index}")[0], index
        again = token_ids(server.generate(PROMPT, "t0", max_new_tokens=TOKENS, ignore_eos_token=True))
        assert again == answers[0]
    assert metrics["lorikeet_adapter_slots_used"] <= 8
    assert metrics['lorikeet_adapter_evictions_total{tier="device"}'] >= COUNT - 8
    assert metrics['lorikeet_adapter_bytes{tier="host"}'] <= 2 << 20
