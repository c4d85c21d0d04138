"""The TCP listener of a shard that is on another machine than its router."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from served_shard import Shard
from shard_driver import warmup_request

from lorikeet_server.pb import shard_pb2 as pb
from lorikeet_server.pb import shard_pb2_grpc as rpc
from lorikeet_server.service.listen import TOKEN, Gate, listen_apart


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tmp_path)
    shard.servicer.ready(shard.engine)
    yield shard
    shard.close()


def shown(token: str) -> list[tuple[str, str]]:
    return [(TOKEN, token)]


def refusal(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        call()
    code: grpc.StatusCode = error.value.code()
    return code


def test_it_answers_those_who_show_the_token(shard: Shard) -> None:
    gate = Gate()
    server, at = shard.call(listen_apart("127.0.0.1", shard.servicer, gate))
    assert at.startswith("127.0.0.1:")
    with grpc.insecure_channel(at) as channel:
        stub: Any = rpc.ShardStub(channel)  # type: ignore[no-untyped-call]
        unauthenticated = grpc.StatusCode.UNAUTHENTICATED
        for token in ("", "right"):  # nothing is right before the group has met
            assert refusal(lambda token=token: stub.Info(pb.InfoRequest(), metadata=shown(token))) == (
                unauthenticated
            )
        gate.open("right")
        assert stub.Info(pb.InfoRequest(), metadata=shown("right")) == shard.engine.info()
        stub.Warmup(warmup_request(), metadata=shown("right"))
        for metadata in ([], shown("wrong")):
            assert refusal(lambda given=metadata: stub.Info(pb.InfoRequest(), metadata=given)) == (
                unauthenticated
            )
            steps = iter([pb.Step(id=1)])
            assert refusal(lambda given=metadata, steps=steps: next(stub.Execute(steps, metadata=given))) == (
                unauthenticated
            )
        results = stub.Execute(iter([pb.Step(id=1)]), metadata=shown("right"))
        assert next(results).id == 1
    shard.call(server.stop(0))
