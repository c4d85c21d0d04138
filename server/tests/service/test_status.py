"""Every message of an error can be sent: a status that gRPC cannot encode leaves its caller waiting."""

import grpc
import pytest

from lorikeet_server.errors import InvalidAdapterError, LorikeetError, NotFoundError
from lorikeet_server.service.status import status_of
from lorikeet_server.weights import WeightsError


def test_codes() -> None:
    assert status_of(NotFoundError("no such thing")) == (grpc.StatusCode.NOT_FOUND, "no such thing")
    assert status_of(WeightsError("cut off")) == (grpc.StatusCode.FAILED_PRECONDITION, "cut off")
    code, message = status_of(ValueError("/a/path"))
    assert code == grpc.StatusCode.INTERNAL and message == "unexpected ValueError; see the shard's log"


@pytest.mark.parametrize("error", [InvalidAdapterError, WeightsError])
@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("(?\ud800a)", r"(?\ud800a)"),
        ("\u00e9", r"\xe9"),
        ("a" * 1000, "a" * 1000),
        ("a" * 1001, "a" * 997 + "..."),
        ("\U0001f600" * 4000, r"\U0001f600" * 99 + r"\U0001f" + "..."),
    ],
)
def test_messages_can_be_sent(error: type[LorikeetError], text: str, sent: str) -> None:
    _, message = status_of(error(text))
    assert message == sent and message.isascii() and len(message) <= 1000
