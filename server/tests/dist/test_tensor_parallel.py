"""Ranks that are processes, over gloo: the same tokens as one rank, adapters included."""

import contextlib
import multiprocessing
import os
import socket
import sys
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_driver import Driver, expected_tokens, make_engine, prompt_of, tiny_model, warmup_request
from tiny_adapters import save_adapter, with_adapter

from lorikeet_server.config import GroupConfig
from lorikeet_server.dist import TensorParallel, connect
from lorikeet_server.errors import ModelError, ProtocolError
from lorikeet_server.pb import shard_pb2 as pb

CPU = torch.device("cpu")
LEFT_WITH_THE_GROUP = 7
PROMPTS = [prompt_of(37, 1), prompt_of(20, 2)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_rank(path: Path, rank: int, size: int, port: int, answers: "Queue[Any]") -> None:
    torch.set_num_threads(1)
    tp = connect(GroupConfig(rank, size, "127.0.0.1", port, rank), CPU, sys.exit)
    engine = make_engine(path / "model", path / f"store{rank}", "reference", [path / "adapters"], tp)
    *_, last = engine.library.fetch("local", "one", 0)
    engine.library.stage(last.digest)
    engine.warmup(warmup_request())
    driver = Driver(engine)
    driver.execute(pb.Step(moves=[pb.AdapterMove(slot=1, digest=last.digest)]))
    base = driver.generate(PROMPTS, 8, chunk=11, prompt_logprobs=True)
    adapted = driver.generate(PROMPTS, 8, adapter_slot=1)
    # As kernels want it, also where the last rank's share is narrower.
    assert tp.gather_columns(torch.ones(3, len(tp.share(199))), 199).is_contiguous()
    drawn = driver.generate(PROMPTS, 8, sampling=pb.Sampling(temperature=1.0, seed=3))
    answers.put(
        {
            "rank": rank,
            "base": [run.tokens for run in base],
            "adapted": [run.tokens for run in adapted],
            "drawn": [run.tokens for run in drawn],
            "prompt": [run.prompt_logprobs for run in base],
            "kv_bytes": engine.kv_shape.bytes_per_token,
            "listening": sorted(listening_addresses()),
        }
    )


def listening_addresses() -> set[str]:
    """Local addresses of this process's listening TCP sockets, as the kernel prints them."""
    mine = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            mine.add(descriptor.readlink().name)
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in mine:
                found.add(fields[1].split(":")[0])
    return found


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        (2, {}),
        (2, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        (2, {"family": "gemma2", "sliding_window": 5}),
        (4, {}),  # more ranks than key/value heads
        (4, {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 2}),
    ],
)
def test_ranks_agree_with_one(size: int, settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", vocab_size=199, **settings)  # 199 does not divide
    save_adapter(model, tmp_path / "adapters" / "one", 1)
    context = multiprocessing.get_context("spawn")
    answers: Queue[Any] = context.Queue()
    port = free_port()
    ranks = [
        context.Process(target=serve_rank, args=(tmp_path, rank, size, port, answers)) for rank in range(size)
    ]
    for process in ranks:
        process.start()
    try:
        seen = sorted((answers.get(timeout=240) for _ in ranks), key=lambda answer: answer["rank"])
    finally:
        for process in ranks:
            process.join(10)
            process.kill()
    assert seen[0]["base"] == [expected_tokens(model, prompt, 8) for prompt in PROMPTS]
    for answer in seen[1:]:
        assert {**answer, "rank": 0} == seen[0]
    assert seen[0]["listening"] == ["0100007F"]  # 127.0.0.1, and no other
    layers, heads = model.config.num_hidden_layers, model.config.num_key_value_heads
    assert seen[0]["kv_bytes"] == layers * 2 * max(1, heads // size) * 12 * 4
    adapted = with_adapter(model, tmp_path / "adapters" / "one")
    assert seen[0]["adapted"] == [expected_tokens(adapted, prompt, 8) for prompt in PROMPTS]
    adapted.unload()
    alone = make_engine(tmp_path / "model", tmp_path / "store")
    alone.warmup(warmup_request())
    runs = Driver(alone).generate(PROMPTS, 8, prompt_logprobs=True)
    for run, logprobs in zip(runs, seen[0]["prompt"], strict=True):
        assert logprobs == pytest.approx(run.prompt_logprobs, abs=1e-4)


def refuse_or_wait(path: Path, rank: int, port: int, refused: Any, over: Any) -> None:
    """Rank 1 is sent a step that cannot be, and stays alive; rank 0 computes one that needs both."""
    torch.set_num_threads(1)
    group = GroupConfig(rank, 2, "127.0.0.1", port, rank)
    tp = connect(group, CPU, lambda: os._exit(LEFT_WITH_THE_GROUP))
    engine = make_engine(path / "model", path / f"store{rank}", "reference", [], tp)
    engine.warmup(warmup_request())
    driver = Driver(engine)
    if rank == 1:
        with pytest.raises(ProtocolError):
            driver.execute(pb.Step(decode=pb.Decode(slot=[5], new_blocks=[0])))
        assert engine.abandon()
        refused.set()
        over.wait(240)
        return
    driver.generate(PROMPTS, 4)


def test_a_rank_that_leaves_takes_the_others_along(tmp_path: Path) -> None:
    """At once: a collective would wait for two minutes."""
    tiny_model(tmp_path / "model")
    context = multiprocessing.get_context("spawn")
    refused, over, port = context.Event(), context.Event(), free_port()
    arguments = [(tmp_path, rank, port, refused, over) for rank in range(2)]
    waiting, leaving = (context.Process(target=refuse_or_wait, args=given) for given in arguments)
    for process in (waiting, leaving):
        process.start()
    try:
        assert refused.wait(200)
        waiting.join(60)
        assert waiting.exitcode == LEFT_WITH_THE_GROUP
        over.set()
        leaving.join(30)
        assert leaving.exitcode == 0
    finally:
        for process in (waiting, leaving):
            process.kill()


def test_heads_that_do_not_divide(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    with pytest.raises(ModelError, match="4 attention heads"):
        make_engine(tmp_path / "model", tmp_path / "store", tp=TensorParallel(0, 3))


def test_shares_cover_everything_once() -> None:
    for total in (1, 7, 199, 512):
        for size in (1, 2, 3, 8):
            shares = [TensorParallel(rank, size).share(total) for rank in range(size)]
            assert [unit for share in shares for unit in share] == list(range(total))
