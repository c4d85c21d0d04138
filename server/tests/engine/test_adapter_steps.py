"""Adapters through the step protocol: a mixed batch gives what PEFT gives for each adapter alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from shard_driver import (
    Driver,
    expected_logprobs,
    expected_tokens,
    make_engine,
    prompt_of,
    tiny_model,
    warmup_request,
)
from tiny_adapters import ATTENTION, save_adapter, with_adapter

from lorikeet_server.engine.engine import Engine
from lorikeet_server.pb import shard_pb2 as pb

ADAPTERS: dict[str, dict[str, Any]] = {
    "wide": {"r": 16, "lora_alpha": 8},
    "attention": {"r": 3, "target_modules": ATTENTION},
    "head": {"r": 4, "target_modules": ["down_proj", "lm_head"]},
    "rslora": {"r": 9, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 40}},
}


class Served:
    """A tiny model, its adapters on disk, and an engine over both."""

    def __init__(self, path: Path, backend: str, family: str) -> None:
        self.model = tiny_model(path / "model", family, tie_word_embeddings=family == "gemma2")
        self.path = path / "adapters"
        for seed, (name, settings) in enumerate(ADAPTERS.items()):
            save_adapter(self.model, self.path / name, seed, **settings)
        self.engine: Engine = make_engine(path / "model", path / "store", backend, [self.path])
        self.digests = {name: self.stage(name) for name in ADAPTERS}

    def stage(self, name: str) -> str:
        *_, last = self.engine.library.fetch("local", name, 0)
        self.engine.library.stage(last.digest)
        return last.digest

    def move(self, driver: Driver, **slots: int) -> pb.StepResult:
        moves = [pb.AdapterMove(slot=slot, digest=self.digests[name]) for name, slot in slots.items()]
        return driver.execute(pb.Step(moves=moves))


@pytest.fixture(
    scope="module", params=[("reference", "llama"), ("cpu", "llama"), ("cpu", "gemma2")], ids="-".join
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("served"), *request.param)


@pytest.fixture
def driver(served: Served) -> Driver:
    served.engine.warmup(warmup_request())
    return Driver(served.engine)


def test_a_mixed_batch_gives_what_peft_gives(served: Served, driver: Driver) -> None:
    result = served.move(driver, wide=2, attention=0, head=3, rslora=1)
    assert sorted(result.adapter_slots_ready) == [0, 1, 2, 3] and not result.move_errors
    names = [None, "wide", "attention", None, "head", "rslora", "wide"]
    slots = {None: -1, "wide": 2, "attention": 0, "head": 3, "rslora": 1}
    step = pb.Step()
    runs = []
    for slot, name in enumerate(names):
        prompt = prompt_of(20 + 3 * slot, slot)
        runs.append(driver.admit(step, slot, prompt, adapter_slot=slots[name], prompt_logprobs=True))
    while any(run.length < len(run.prompt) for run in runs):
        for run in runs:
            if run.length < len(run.prompt):
                driver.prefill(step, run, 17)
        driver.execute(step)
        step = pb.Step()
    for _ in range(7):
        step = pb.Step()
        driver.decode(step, *runs[::-1])
        driver.execute(step)
    for name, run in zip(names, runs, strict=True):
        model = with_adapter(served.model, served.path / name) if name else served.model
        assert run.tokens == expected_tokens(model, run.prompt, 8), name
        expected = expected_logprobs(model, run.prompt + run.tokens)
        following = torch.tensor(run.prompt[1:] + run.tokens)
        wanted = expected[torch.arange(len(following)), following].tolist()
        assert run.prompt_logprobs + run.logprobs == pytest.approx(wanted, abs=1e-4)
        if name:
            model.unload()


def test_a_slot_changes_hands(served: Served, driver: Driver) -> None:
    """The same step may empty a slot, fill it and use it."""
    prompt = prompt_of(18, 40)
    tokens = {}
    for name in ("wide", "attention", "wide"):
        step = pb.Step(moves=[pb.AdapterMove(slot=1), pb.AdapterMove(slot=1, digest=served.digests[name])])
        run = driver.admit(step, 0, prompt, adapter_slot=1)
        driver.prefill(step, run)
        driver.execute(step)
        for _ in range(5):
            step = pb.Step()
            driver.decode(step, run)
            driver.execute(step)
        assert tokens.setdefault(name, run.tokens) == run.tokens and run.errors == []
        driver.release(run)
    assert tokens["wide"] != tokens["attention"]


def test_an_empty_slot_is_an_error_not_the_base(served: Served, driver: Driver) -> None:
    step = pb.Step(moves=[pb.AdapterMove(slot=0, digest="0" * 64)])
    lost = driver.admit(step, 0, prompt_of(9, 1), adapter_slot=0)
    base = driver.admit(step, 1, prompt_of(9, 1))
    driver.prefill(step, lost)
    driver.prefill(step, base)
    result = driver.execute(step)
    assert [(error.slot, error.digest) for error in result.move_errors] == [(0, "0" * 64)]
    assert not result.adapter_slots_ready
    assert lost.errors == ["internal"] and base.errors == []


def test_a_new_stream_empties_adapter_slots_and_keeps_staged_ones(served: Served, driver: Driver) -> None:
    served.move(driver, wide=0)
    tables = driver.engine._model.adapters
    assert tables is not None and tables.held[0] is not None
    driver.engine.reset()
    assert tables.held[0] is None, "or the tables would keep its memory"
    step = pb.Step()
    run = driver.admit(step, 0, prompt_of(9, 1), adapter_slot=0)
    driver.prefill(step, run)
    driver.execute(step)
    assert run.errors == ["internal"]
    assert not served.move(driver, wide=0).move_errors
