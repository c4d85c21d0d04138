"""The gRPC surface over a real Unix socket, with the server in a thread of this process."""

import errno
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loguru import logger
from served_shard import Shard, prefill, wait_for
from shard_driver import expected_tokens, prompt_of, warmup_request

from lorikeet_server.adapters import intake
from lorikeet_server.engine.result import PendingResult
from lorikeet_server.errors import ConfigError, DeviceError, ModelError
from lorikeet_server.pb import shard_pb2 as pb
from lorikeet_server.service.listen import MAX_MESSAGE_BYTES
from lorikeet_server.service.threads import STAGING_THREADS


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shard]:
    shard = Shard(tmp_path_factory.mktemp("shard"))
    with pytest.raises(grpc.RpcError) as loading:
        shard.stub.Info(pb.InfoRequest())
    assert loading.value.code() == grpc.StatusCode.UNAVAILABLE
    shard.servicer.ready(shard.engine)
    yield shard
    shard.close()


@pytest.fixture
def warm(shard: Shard) -> Shard:
    shard.stub.Warmup(warmup_request())
    return shard


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code()


def test_tokens_over_the_wire(warm: Shard) -> None:
    """All steps are sent before the first result is read: results keep their order, however far ahead."""
    stream, prompt = warm.open(), prompt_of(14, 1)
    first = prefill(0, prompt)
    first.id = 1
    stream.send(first)
    for number in range(2, 12):
        decode = pb.Decode(slot=[0], new_blocks=[int(number == 4)], blocks=[0] * int(number == 4))
        stream.send(pb.Step(id=number, decode=decode))
    results = [next(stream.results) for _ in range(11)]
    assert [result.id for result in results] == list(range(1, 12))
    assert [result.token[0] for result in results] == expected_tokens(warm.model, prompt, 11)
    assert all(result.compute_us > 0 for result in results)
    stream.send(None)
    assert list(stream.results) == []


def test_a_new_stream_ends_the_old_one_and_starts_clean(warm: Shard) -> None:
    old = warm.open()
    assert old.execute(prefill(0, prompt_of(5, 1))).errors == []
    new = warm.open()
    # The slot of the old stream is free again.
    assert len(new.execute(prefill(0, prompt_of(5, 1))).token) == 1
    assert code_of(lambda: next(old.results)) == grpc.StatusCode.ABORTED
    assert len(new.execute(pb.Step(decode=pb.Decode(slot=[0], new_blocks=[0]))).token) == 1


def held_steps(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], threading.Event]:
    """The steps that have begun from now on, and the gate that they wait at."""
    ran: list[int] = []
    gate = threading.Event()
    launch = shard.engine.launch

    def held(step: pb.Step) -> PendingResult:
        ran.append(step.id)
        gate.wait(10)
        return launch(step)

    monkeypatch.setattr(shard.engine, "launch", held)
    return ran, gate


def test_a_client_that_leaves(warm: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled stream does not run what it had sent, and leaves nothing for the next."""
    ran, gate = held_steps(warm, monkeypatch)
    gone = warm.open()
    for number in (1, 2):
        gone.send(pb.Step(id=number))
    wait_for(lambda: ran == [1])
    gone.results.cancel()
    streams = warm.servicer._streams
    assert streams is not None
    wait_for(lambda: streams._session is None)
    gate.set()
    assert warm.open().execute(pb.Step(id=7)).id == 7
    assert ran == [1, 7]


@pytest.mark.parametrize("how", ["cancelled", "superseded", "warmed up"])
def test_a_group_does_not_outlive_a_stream_that_ends_amid_steps(
    warm: Shard, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its peers may compute the steps that it skips, or skip the one that it waits in."""
    ran, gate = held_steps(warm, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(warm.engine, "abandon", lambda: True)
        idle = warm.open()
        idle.send(pb.Step(id=1))
        gate.set()
        next(idle.results)
        gate.clear()
        torn = warm.open()
        for number in (2, 3):
            torn.send(pb.Step(id=number))
        wait_for(lambda: ran == [1, 2])
        assert not warm.fatal.is_set(), "the first had no step left"
        next_call = None  # one that nobody holds any more is cancelled
        if how == "cancelled":
            torn.results.cancel()
        elif how == "superseded":
            next_call = warm.open()
        else:
            next_call = warm.stub.Warmup.future(warmup_request())
        assert warm.fatal.wait(5)
        warm.fatal.clear()
        del next_call
    gate.set()


def test_warmup_ends_the_stream(warm: Shard) -> None:
    stream = warm.open()
    stream.execute(prefill(0, prompt_of(5, 1)))
    assert warm.stub.Warmup(warmup_request(kv_bytes=1 << 20)).num_blocks < 300
    assert code_of(lambda: next(stream.results)) == grpc.StatusCode.ABORTED


def test_warmup_forgets_what_was_staged(warm: Shard) -> None:
    *_, last = warm.stub.FetchAdapter(pb.FetchAdapterRequest(source="local", id="one"))
    warm.stub.StageAdapter(pb.StageAdapterRequest(digest=last.digest))
    assert warm.engine.library.staged.bytes_held > 0
    warm.stub.Warmup(warmup_request())
    assert warm.engine.library.staged.bytes_held == 0
    warm.stub.StageAdapter(pb.StageAdapterRequest(digest=last.digest))  # the store has it still


@pytest.mark.parametrize(
    ("error", "code", "refused"),
    [
        (ConfigError("lower --kv-cache-bytes"), grpc.StatusCode.INVALID_ARGUMENT, True),
        (ModelError("the model does not run"), grpc.StatusCode.FAILED_PRECONDITION, True),
        (DeviceError("the device has failed"), grpc.StatusCode.UNAVAILABLE, False),
        (RuntimeError("out of memory"), grpc.StatusCode.INTERNAL, False),
    ],
)
def test_a_shard_that_cannot_be_warmed_up_ends(
    shard: Shard, monkeypatch: pytest.MonkeyPatch, error: Exception, code: grpc.StatusCode, refused: bool
) -> None:
    """Its router would ask again and again. The launcher tells what the shard logged last."""

    def fail(request: pb.WarmupRequest) -> pb.WarmupResponse:
        raise error

    said: list[str] = []
    handler = logger.add(said.append, level="ERROR", format="{message} {exception}")
    monkeypatch.setattr(shard.engine, "warmup", fail)
    assert code_of(lambda: shard.stub.Warmup(warmup_request())) == code
    logger.remove(handler)
    assert (shard.refused.is_set(), shard.fatal.is_set()) == (refused, not refused)
    assert str(error) in said[0] and len(said) == 1
    shard.refused.clear()
    shard.fatal.clear()


def test_a_refused_step_ends_the_stream_with_its_reason(warm: Shard) -> None:
    stream = warm.open()
    stream.send(pb.Step(id=1, decode=pb.Decode(slot=[3], new_blocks=[0])))
    stream.send(pb.Step(id=2))
    assert code_of(lambda: next(stream.results)) == grpc.StatusCode.INVALID_ARGUMENT
    assert not warm.fatal.is_set()
    assert len(warm.open().execute(prefill(0, prompt_of(5, 1))).token) == 1


def test_a_refusal_in_a_group_ends_the_shard(warm: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its peers compute the step that it refused."""
    with monkeypatch.context() as patch:
        patch.setattr(warm.engine, "abandon", lambda: True)
        stream = warm.open()
        stream.send(pb.Step(id=1, decode=pb.Decode(slot=[3], new_blocks=[0])))
        assert code_of(lambda: next(stream.results)) == grpc.StatusCode.INVALID_ARGUMENT
    assert warm.fatal.wait(5)
    warm.fatal.clear()


def test_steps_of_an_ended_stream_do_not_run(warm: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, gate = held_steps(warm, monkeypatch)
    old = warm.open()
    for number in (1, 2, 3):
        old.send(pb.Step(id=number))
    wait_for(lambda: ran == [1])
    streams = warm.servicer._streams
    assert streams is not None
    session = streams._session
    new = warm.open()
    new.send(pb.Step(id=10))
    wait_for(lambda: streams._session is not session)
    gate.set()
    assert code_of(lambda: list(old.results)) == grpc.StatusCode.ABORTED
    assert next(new.results).id == 10
    assert ran == [1, 10]


def test_an_unexpected_error_is_fatal_and_says_little(warm: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(warm.engine, "launch", lambda _: (_ for _ in ()).throw(RuntimeError("/secret/path")))
        stream = warm.open()
        stream.send(pb.Step(id=1))
        with pytest.raises(grpc.RpcError) as raised:
            next(stream.results)
    assert raised.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(raised.value.details())
    assert warm.fatal.wait(5)
    warm.fatal.clear()


def test_execute_before_warmup(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.servicer.ready(shard.engine)
    assert code_of(lambda: next(shard.open().results)) == grpc.StatusCode.FAILED_PRECONDITION
    shard.close()


def test_garbage_is_an_error_of_the_call_only(warm: Shard) -> None:
    raw = warm.channel.unary_unary("/lorikeet.v1.Shard/Warmup")
    assert code_of(lambda: raw(b"\xff\xff\xff")) in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    oversized = pb.FetchAdapterRequest(source="local", id="x" * MAX_MESSAGE_BYTES)
    assert code_of(lambda: list(warm.stub.FetchAdapter(oversized))) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert warm.stub.Info(pb.InfoRequest()).model_id == "tiny"


def test_adapters_over_the_wire(warm: Shard) -> None:
    progress = list(warm.stub.FetchAdapter(pb.FetchAdapterRequest(source="local", id="one")))
    digest = progress[-1].digest
    assert len(digest) == 64 and progress[-1].stored_bytes == progress[-1].bytes_total > 0
    assert all(not step.digest for step in progress[:-1])
    staged = warm.stub.StageAdapter(pb.StageAdapterRequest(digest=digest))
    assert staged.max_rank == 8 and staged.host_bytes > 0 and staged.device_bytes > 0
    stream = warm.open()
    result = stream.execute(pb.Step(moves=[pb.AdapterMove(slot=0, digest=digest)]))
    assert list(result.adapter_slots_ready) == [0]
    warm.stub.DropAdapter(pb.DropAdapterRequest(digest=digest, from_store=True))
    warm.stub.DropAdapter(pb.DropAdapterRequest(digest=digest, from_store=True))
    gone = pb.StageAdapterRequest(digest=digest)
    assert code_of(lambda: warm.stub.StageAdapter(gone)) == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("source", "id", "bound", "code"),
    [
        ("local", "missing", 0, grpc.StatusCode.NOT_FOUND),
        ("hub", "one", 0, grpc.StatusCode.INVALID_ARGUMENT),
        ("local", "one", 100, grpc.StatusCode.OUT_OF_RANGE),
    ],
)
def test_fetch_errors(warm: Shard, source: str, id: str, bound: int, code: grpc.StatusCode) -> None:
    request = pb.FetchAdapterRequest(source=source, id=id, max_bytes=bound)
    assert code_of(lambda: list(warm.stub.FetchAdapter(request))) == code


def test_a_full_store_has_another_code_than_an_adapter_that_never_fits(
    warm: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(intake, "_write_all", full)
    request = pb.FetchAdapterRequest(source="local", id="one")
    assert code_of(lambda: list(warm.stub.FetchAdapter(request))) == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_calls_are_answered_while_a_step_runs(warm: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, gate = held_steps(warm, monkeypatch)
    stream = warm.open()
    stream.send(pb.Step(id=1))
    wait_for(lambda: ran == [1])
    assert warm.stub.Info(pb.InfoRequest(), timeout=5).rank == 0
    health = health_pb2_grpc.HealthStub(warm.channel)
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING  # as long as `serve` says nothing else
    fetched = list(warm.stub.FetchAdapter(pb.FetchAdapterRequest(source="local", id="one"), timeout=10))
    assert fetched[-1].digest
    gate.set()
    assert next(stream.results).id == 1


def test_a_stuck_source_holds_up_its_own_fetch_only(warm: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    (*_, last) = warm.stub.FetchAdapter(pb.FetchAdapterRequest(source="local", id="one"))
    gate, stuck = threading.Event(), []
    fetch = type(warm.engine.library).fetch

    def slow(library: Any, source: str, adapter_id: str, max_bytes: int) -> Any:
        if adapter_id == "stuck":
            stuck.append(adapter_id)
            gate.wait(30)
        yield from fetch(library, source, adapter_id, max_bytes)

    monkeypatch.setattr(type(warm.engine.library), "fetch", slow)
    request = pb.FetchAdapterRequest(source="local", id="stuck")
    waiting = [warm.stub.FetchAdapter(request) for _ in range(5)]
    wait_for(lambda: len(stuck) == 5)
    assert warm.stub.StageAdapter(pb.StageAdapterRequest(digest=last.digest), timeout=10).max_rank == 8
    assert list(warm.stub.FetchAdapter(pb.FetchAdapterRequest(source="local", id="one"), timeout=10))
    gate.set()
    for call in waiting:
        assert code_of(lambda call=call: list(call)) == grpc.StatusCode.NOT_FOUND


def test_adapters_are_dropped_while_others_are_staged(warm: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The room that a staging needs is made by drops, which a router does not wait for as long."""
    (*_, last) = warm.stub.FetchAdapter(pb.FetchAdapterRequest(source="local", id="one"))
    request = pb.StageAdapterRequest(digest=last.digest)
    warm.stub.StageAdapter(request)
    gate, begun = threading.Event(), []
    stage = type(warm.engine.library).stage

    def slow(library: Any, digest: str) -> Any:
        begun.append(digest)
        gate.wait(30)
        return stage(library, digest)

    monkeypatch.setattr(type(warm.engine.library), "stage", slow)
    waiting = [warm.stub.StageAdapter.future(request) for _ in range(5)]
    wait_for(lambda: len(begun) == STAGING_THREADS)
    warm.stub.DropAdapter(pb.DropAdapterRequest(digest=last.digest), timeout=10)
    assert len(warm.engine.library.staged) == 0
    gate.set()
    assert {call.result(timeout=20).max_rank for call in waiting} == {8}


def test_the_socket_is_private(shard: Shard) -> None:
    mode = shard.socket.stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
