"""Work between steps: only in quiet moments, and a step waits for one call of it at most."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from served_shard import Shard, prefill, wait_for
from shard_driver import prompt_of, warmup_request

from lorikeet_server.service import idle
from lorikeet_server.service.idle import IdleMoments


def test_it_runs_until_nothing_is_left_and_again_after_a_step() -> None:
    calls: list[bool] = []

    def work() -> bool:
        calls.append(len(calls) % 3 < 2)
        return calls[-1]

    async def use() -> None:
        with ThreadPoolExecutor(1) as executor:
            moments = IdleMoments(executor, work)
            task = asyncio.create_task(moments.use())
            for rounds in (1, 2):
                while len(calls) < 3 * rounds:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(2 * idle.QUIET_SECONDS)
                assert calls == [True, True, False] * rounds
                moments.interrupt()
            task.cancel()

    asyncio.run(asyncio.wait_for(use(), 20))


def test_it_waits_while_steps_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "QUIET_SECONDS", 1.0)
    calls: list[int] = []

    async def use() -> None:
        with ThreadPoolExecutor(1) as executor:
            moments = IdleMoments(executor, lambda: bool(calls.append(1)))
            task = asyncio.create_task(moments.use())
            for _ in range(150):
                await asyncio.sleep(0.01)
                moments.interrupt()
            assert not calls
            while not calls:
                await asyncio.sleep(0.01)
            task.cancel()

    asyncio.run(asyncio.wait_for(use(), 20))


def test_an_idle_stream_takes_memory_ahead(tmp_path_factory: pytest.TempPathFactory) -> None:
    shard = Shard(tmp_path_factory.mktemp("shard"))
    answers: list[bool] = []
    take_ahead = shard.engine.take_ahead

    def counted() -> bool:
        answers.append(take_ahead())
        return answers[-1]

    shard.engine.take_ahead = counted  # type: ignore[method-assign]
    shard.servicer.ready(shard.engine)
    try:
        shard.stub.Warmup(warmup_request())
        assert not answers
        stream = shard.open()
        wait_for(lambda: False in answers)
        assert answers.index(False) > 0
        count = len(answers)
        assert len(stream.execute(prefill(0, prompt_of(5, 1))).token) == 1
        wait_for(lambda: len(answers) > count)
    finally:
        shard.close()
