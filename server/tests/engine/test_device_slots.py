"""Adapters that are copied beside the steps: when they count as there, and what their memory may do."""

from pathlib import Path

import pytest
import torch
from devices import LateDevice
from shard_driver import Driver, Run, expected_tokens, make_engine, prompt_of, tiny_model, warmup_request
from tiny_adapters import save_adapter, with_adapter

from lorikeet_server.adapters import device_memory
from lorikeet_server.engine.engine import Engine
from lorikeet_server.pb import shard_pb2 as pb

NAMES = ["a", "b", "c", "d"]
RANKS = [4, 8, 2, 16]


class Served:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = tiny_model(path / "model")
        for seed, (name, rank) in enumerate(zip(NAMES, RANKS, strict=True)):
            save_adapter(self.model, path / "adapters" / name, seed, r=rank)

    def engine(self, device: LateDevice, adapter_bytes: int) -> tuple[Engine, dict[str, str]]:
        engine = make_engine(
            self.path / "model", self.path / "store", roots=[self.path / "adapters"], device=device
        )
        with torch.inference_mode():
            engine.warmup(warmup_request(adapter_bytes=adapter_bytes))
        digests = {}
        for name in NAMES:
            *_, last = engine.library.fetch("local", name, 0)
            digests[name] = engine.library.stage(last.digest).digest
        return engine, digests

    def expected(self, name: str, prompt: list[int], count: int) -> list[int]:
        model = with_adapter(self.model, self.path / "adapters" / name)
        tokens = expected_tokens(model, prompt, count)
        model.unload()
        return tokens

    def bytes_of(self, engine: Engine, digest: str) -> int:
        return engine.library.stage(digest).memory_bytes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("slots"))


def generate(driver: Driver, slot: int, prompt: list[int], count: int, adapter: int) -> Run:
    step = pb.Step()
    run = driver.admit(step, slot, prompt, adapter_slot=adapter)
    driver.prefill(step, run)
    driver.execute(step)
    while len(run.tokens) < count:
        step = pb.Step()
        driver.decode(step, run)
        driver.execute(step)
    return run


def test_a_copy_is_reported_when_it_is_done(served: Served) -> None:
    device = LateDevice()
    engine, digests = served.engine(device, 1 << 20)
    assert not engine.info().synchronous_moves
    driver = Driver(engine)
    device.copies.clear()
    assert not driver.execute(
        pb.Step(moves=[pb.AdapterMove(slot=1, digest=digests["a"])])
    ).adapter_slots_ready
    base = generate(driver, 0, prompt_of(9, 1), 3, -1)  # steps go on meanwhile
    assert base.tokens == expected_tokens(served.model, base.prompt, 3)
    assert not driver.execute(pb.Step()).adapter_slots_ready
    device.copies.set()
    assert list(driver.execute(pb.Step()).adapter_slots_ready) == [1]
    assert not driver.execute(pb.Step()).adapter_slots_ready
    run = generate(driver, 1, prompt_of(12, 2), 4, 1)
    assert run.tokens == served.expected("a", run.prompt, 4)


def test_a_step_that_needs_a_copy_starts_after_it(served: Served) -> None:
    """With several ranks the router hears of rank 0's copies only; another may be behind."""
    device = LateDevice()
    engine, digests = served.engine(device, 1 << 20)
    driver = Driver(engine)
    device.copies.clear()
    driver.execute(pb.Step(moves=[pb.AdapterMove(slot=0, digest=digests["b"])]))
    run = generate(driver, 0, prompt_of(12, 2), 3, 0)
    assert run.errors == [] and run.tokens == served.expected("b", run.prompt, 3)
    assert device.beside[0][0].joined


def test_memory_in_use_is_not_overwritten(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool holds exactly what the budget says, moved together where it has gaps; a copy into memory that
    was released waits for the steps that may still read it."""
    monkeypatch.setattr(device_memory, "BOUNCE_BYTES", 4096)
    device = LateDevice()
    probe, digests = served.engine(device, 1 << 20)
    sizes = {name: served.bytes_of(probe, digest) for name, digest in digests.items()}
    budget = sizes["a"] + sizes["b"] + sizes["d"]
    engine, _ = served.engine(device, budget)
    driver = Driver(engine)

    def move(**slots: int) -> pb.StepResult:
        moves = [pb.AdapterMove(slot=slot, digest=digests.get(name, "")) for name, slot in slots.items()]
        return driver.execute(pb.Step(moves=moves))

    device.beside.clear()
    assert sorted(move(a=0, b=1, d=2).adapter_slots_ready) == [0, 1, 2]
    assert [after for _, after in device.beside] == [None] * 3  # nothing was there before
    refused = move(c=3)
    assert "--adapter-memory-bytes" in refused.move_errors[0].message and not refused.adapter_slots_ready
    # `a` goes; `c` takes part of its place; then `b` goes, and `a` fits only once `d` has moved.
    assert move(none=0, c=3).adapter_slots_ready
    assert device.beside[-1][1] is not None
    result = driver.execute(
        pb.Step(
            moves=[
                pb.AdapterMove(slot=1),
                pb.AdapterMove(slot=3),
                pb.AdapterMove(slot=0, digest=digests["b"]),
                pb.AdapterMove(slot=1, digest=digests["a"]),
            ]
        )
    )
    assert not result.move_errors
    runs = {
        name: generate(driver, i, prompt_of(12, i), 3, slot)
        for i, (name, slot) in enumerate({"b": 0, "a": 1, "d": 2}.items())
    }
    for name, run in runs.items():
        assert run.errors == [] and run.tokens == served.expected(name, run.prompt, 3), name


def test_a_copy_that_nobody_wants_any_more_overwrites_nobody(served: Served) -> None:
    device = LateDevice()
    probe, digests = served.engine(device, 1 << 20)
    budget = sum(served.bytes_of(probe, digests[name]) for name in "bd")
    engine, _ = served.engine(device, budget)
    driver = Driver(engine)

    def move(slot: int, name: str) -> None:
        step = pb.Step(moves=[pb.AdapterMove(slot=slot, digest=digests.get(name, ""))])
        assert not driver.execute(step).move_errors

    move(0, "a")
    move(1, "b")
    move(0, "none")
    device.copies.clear()
    move(3, "c")  # where `a` was
    move(3, "none")
    move(2, "d")  # `b` makes room for it, and comes to lie where `c` is still being copied to
    device.copies.set()
    with torch.inference_mode():
        assert all(event.reached() for event, _ in device.beside)
    run = generate(driver, 0, prompt_of(12, 2), 3, 1)
    assert run.errors == [] and run.tokens == served.expected("b", run.prompt, 3)


def test_an_adapter_that_replaces_another_is_ready_when_it_has_come(served: Served) -> None:
    device = LateDevice()
    engine, digests = served.engine(device, 1 << 20)
    driver = Driver(engine)
    driver.execute(pb.Step(moves=[pb.AdapterMove(slot=0, digest=digests["a"])]))
    device.copies.clear()
    replaced = pb.Step(moves=[pb.AdapterMove(slot=0), pb.AdapterMove(slot=0, digest=digests["b"])])
    assert not driver.execute(replaced).adapter_slots_ready
    device.copies.set()
    assert list(driver.execute(pb.Step()).adapter_slots_ready) == [0]
