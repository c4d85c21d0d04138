"""Captured decodes give what steps give op by op, whatever the rows, lengths, adapters and ranks."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import CapturingDevice
from gather_kernels import GatherKernels
from shard_driver import Driver, Run, make_engine, prompt_of, tiny_model, warmup_request
from tiny_adapters import ATTENTION, save_adapter

from lorikeet_server.engine.engine import Engine
from lorikeet_server.engine.graphs import buckets
from lorikeet_server.kernels.reference.backend import ReferenceKernels
from lorikeet_server.pb import shard_pb2 as pb

SAMPLED = pb.Sampling(temperature=0.9, top_p=0.95, top_k=40, seed=11, top_logprobs=2)
ADAPTERS: dict[str, dict[str, Any]] = {
    "wide": {"r": 16, "lora_alpha": 8},
    "attention": {"r": 3, "target_modules": ATTENTION},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs")
    model = tiny_model(path / "model")
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        save_adapter(model, path / "adapters" / name, seed, **settings)
    return path


def engine_of(path: Path, kernels: ReferenceKernels, device: CapturingDevice | None, **sizes: int) -> Engine:
    engine = make_engine(
        path / "model", path / "store", roots=[path / "adapters"], kernels=kernels, device=device
    )
    with torch.inference_mode():
        engine.warmup(warmup_request(**sizes))
    return engine


def conversation(engine: Engine) -> list[Run]:
    """Adapters come and change hands while sequences of all kinds decode, one to seven at a time."""
    driver, digests = Driver(engine), []
    for name in ADAPTERS:
        *_, last = engine.library.fetch("local", name, 0)
        engine.library.stage(last.digest)
        digests.append(last.digest)
    moves = [pb.AdapterMove(slot=2, digest=digests[0]), pb.AdapterMove(slot=0, digest=digests[1])]
    step = pb.Step(moves=moves)
    adapter_slots = [-1, 2, 0, 2, -1, 0, 2]
    runs = []
    for slot, adapter in enumerate(adapter_slots):
        prompt = prompt_of(5 + 9 * slot, slot)
        sampling = SAMPLED if slot % 2 else pb.Sampling()
        runs.append(driver.admit(step, slot, prompt, adapter_slot=adapter, sampling=sampling))
        driver.prefill(step, runs[-1])
    driver.execute(step)
    for chosen in ([0], [0, 4], [1], [2, 3, 1], [6, 5, 4, 3, 2, 1, 0], [5, 6, 1], [3]):
        for _ in range(3):
            step = pb.Step()
            driver.decode(step, *(runs[i] for i in chosen))
            driver.execute(step)
    driver.release(*(runs[i] for i in (1, 3, 6)))
    step = pb.Step(moves=[pb.AdapterMove(slot=2), pb.AdapterMove(slot=2, digest=digests[1])])
    late = driver.admit(step, 1, prompt_of(30, 40), adapter_slot=2)
    driver.prefill(step, late)
    driver.execute(step)
    for _ in range(20):
        step = pb.Step()
        driver.decode(step, late, runs[2], runs[0])
        driver.execute(step)
    return [*runs, late]


def test_captured_steps_are_the_steps_themselves(path: Path) -> None:
    device = CapturingDevice()
    captured = conversation(engine_of(path, GatherKernels(), device))
    assert device.captures == 2 * len(buckets(8))
    assert device.replays == 7 * 3 + 20
    plain = conversation(engine_of(path, ReferenceKernels(), None))
    for a, b in zip(captured, plain, strict=True):
        assert a.tokens == b.tokens and a.errors == b.errors == []
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert [[token for token, _ in row] for row in a.alternatives] == [
            [token for token, _ in row] for row in b.alternatives
        ]


def test_few_adapters_have_captures_of_their_own(path: Path) -> None:
    """From 17 rows on. A step replays the one for as many as it has, or for all."""
    kernels, sizes = GatherKernels(), {"max_sequences": 24, "max_step_tokens": 256, "adapter_slots": 6}
    engine = engine_of(path, kernels, CapturingDevice(), **sizes)
    plain = engine_of(path, ReferenceKernels(), None, **sizes)
    assert engine._warm is not None and (graphs := engine._warm.runner._graphs) is not None
    assert sorted(graphs._captured) == [
        (rows, most) for rows in (1, 2, 4, 8, 16, 24) for most in ((0, 4, 6) if rows > 16 else (0, 6))
    ]
    runs = []
    for each in (engine, plain):
        driver, step = Driver(each), pb.Step()
        for slot in range(6):
            *_, last = each.library.fetch("local", list(ADAPTERS)[slot % 2], 0)
            each.library.stage(last.digest)
            step.moves.append(pb.AdapterMove(slot=slot, digest=last.digest))
        slots = [-1] * 14 + [0] * 5 + [3, 1, 2, 4, 5]
        every = [driver.admit(step, i, prompt_of(4, i), adapter_slot=slot) for i, slot in enumerate(slots)]
        for run in every:
            driver.prefill(step, run)
        driver.execute(step)
        for chosen in (every, every[:22], every[:17], every[:14], every[14:]):
            step = pb.Step()
            driver.decode(step, *chosen)
            driver.execute(step)
        runs.append(every)
    for a, b in zip(*runs, strict=True):
        assert a.tokens == b.tokens and a.errors == b.errors == []


def test_a_step_sends_one_copy(path: Path) -> None:
    """Whatever it has: prompts with scores, decodes captured or not, filters, penalties, alternatives. What a
    request brings once, the history of a penalty and its biases, is sent when it is admitted."""
    device = CapturingDevice()
    engine = engine_of(path, GatherKernels(), device)
    *_, last = engine.library.fetch("local", "wide", 0)
    engine.library.stage(last.digest)
    driver, step = Driver(engine), pb.Step(moves=[pb.AdapterMove(slot=1, digest=last.digest)])
    penalised = pb.Sampling(
        temperature=1.0, typical_p=0.9, frequency_penalty=1.0, bias_tokens=[3], bias_values=[1.0]
    )
    first = driver.admit(step, 0, prompt_of(90, 1), adapter_slot=1, sampling=SAMPLED, prompt_logprobs=True)
    second = driver.admit(step, 1, prompt_of(8, 2), sampling=penalised, history=prompt_of(8, 2))
    driver.prefill(step, first)
    driver.prefill(step, second, 5)
    before = device.copies
    driver.execute(step)
    assert device.copies - before == 1 + 3
    for chosen in ([first], [first, second], [second], [first, second]):
        step = pb.Step()
        if second.length < 8:
            driver.prefill(step, second)
        driver.decode(step, *(run for run in chosen if run.tokens))
        before = device.copies
        driver.execute(step)
        assert device.copies - before == 1
    assert device.replays == 3 and first.errors == second.errors == []


def test_padding_leaves_every_block_alone(path: Path) -> None:
    """Five rows run as eight; the cache of another sequence, and all free blocks, keep their bits."""
    engine = engine_of(path, GatherKernels(), CapturingDevice(), adapter_slots=0)
    driver = Driver(engine)
    step = pb.Step()
    runs = [driver.admit(step, slot, prompt_of(9 + slot, slot)) for slot in range(6)]
    for run in runs:
        driver.prefill(step, run)
    driver.execute(step)
    caches = [
        cache
        for block in engine._model._blocks
        for cache in (block.attention.layer.k_cache, block.attention.layer.v_cache)
    ]
    before = [cache.clone() for cache in caches]
    step = pb.Step()
    driver.decode(step, *runs[:5])
    driver.execute(step)
    written = {(run.blocks[-1], (run.length - 1) % 16) for run in runs[:5]}
    for cache, old in zip(caches, before, strict=True):
        changed = (cache[:-1] != old[:-1]).flatten(2).any(-1).nonzero().tolist()
        assert {tuple(place) for place in changed} == written


def test_steps_beyond_the_largest_capture_run_op_by_op(path: Path) -> None:
    device = CapturingDevice()
    engine = engine_of(path, GatherKernels(), device, max_sequences=4, adapter_slots=0)
    assert device.captures == len(buckets(4)) == 3
    runs = Driver(engine).generate([prompt_of(7, seed) for seed in range(4)], 5)
    assert device.replays == 4
    plain = engine_of(path, ReferenceKernels(), None, max_sequences=4)
    expected = Driver(plain).generate([prompt_of(7, seed) for seed in range(4)], 5)
    assert [run.tokens for run in runs] == [run.tokens for run in expected]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (20, [1, 2, 4, 8, 16, 20]), (300, None)],
)
def test_buckets(rows: int, expected: list[int] | None) -> None:
    found = buckets(rows)
    assert found == expected or (expected is None and found[-1] == 256)
    assert found == sorted(set(found))
    # What padding costs at most, once the weights are no longer all that is read.
    assert all(b - a <= 8 or b <= 1.34 * a for a, b in pairwise(found))
