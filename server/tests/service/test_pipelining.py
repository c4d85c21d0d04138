"""Two steps in flight on a device that works by itself."""

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from devices import LateDevice
from served_shard import Shard, prefill, wait_for
from shard_driver import expected_tokens, prompt_of, warmup_request

from lorikeet_server.engine.result import PendingResult
from lorikeet_server.errors import DeviceError
from lorikeet_server.pb import shard_pb2 as pb


@pytest.fixture
def late(tmp_path: Path) -> Iterator[tuple[Shard, LateDevice]]:
    device = LateDevice()
    shard = Shard(tmp_path, device)
    shard.servicer.ready(shard.engine)
    shard.stub.Warmup(warmup_request())
    yield shard, device
    device.steps.set()
    shard.close()


def test_a_step_is_called_for_before_the_last_is_done(
    late: tuple[Shard, LateDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, device = late
    called: list[int] = []
    launch = shard.engine.launch

    def counted(step: pb.Step) -> PendingResult:
        called.append(step.id)
        return launch(step)

    monkeypatch.setattr(shard.engine, "launch", counted)
    prompt = prompt_of(14, 1)
    stream, first = shard.open(), prefill(0, prompt)
    first.id = 1
    device.steps.clear()
    stream.send(first)
    for number in (2, 3, 4):
        stream.send(
            pb.Step(
                id=number,
                decode=pb.Decode(slot=[0], new_blocks=[int(number == 4)], blocks=[0] * int(number == 4)),
            )
        )
    wait_for(lambda: called == [1, 2, 3, 4])
    answers: list[pb.StepResult] = []
    reader = threading.Thread(target=lambda: answers.extend(next(stream.results) for _ in range(4)))
    reader.start()
    assert not answers
    device.steps.set()
    reader.join(20)
    assert [answer.id for answer in answers] == [1, 2, 3, 4]
    assert [answer.token[0] for answer in answers] == expected_tokens(shard.model, prompt, 4)


def test_a_failed_device_ends_the_shard_with_its_reason(late: tuple[Shard, LateDevice]) -> None:
    shard, device = late
    device.failure = DeviceError.of(RuntimeError("CUDA error: an illegal memory access\nadvice on debugging"))
    stream = shard.open()
    stream.send(prefill(0, prompt_of(5, 1)))
    with pytest.raises(grpc.RpcError) as raised:
        next(stream.results)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "illegal memory access" in str(raised.value.details())
    assert "advice" not in str(raised.value.details())
    assert shard.fatal.wait(10)
