"""What the log says while weights are read."""

import time
from collections.abc import Iterator

import pytest
from loguru import logger

from lorikeet_server.service.load import reporter
from lorikeet_server.weights import Progress


@pytest.fixture
def lines() -> Iterator[list[str]]:
    written: list[str] = []
    handler = logger.add(lambda message: written.append(message.record["message"]), level="INFO")
    yield written
    logger.remove(handler)


def test_progress_is_logged_after_a_second_and_every_three(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    report = reporter("org/model")
    for step in range(1, 21):
        now = 100 + step / 2
        report(Progress(step * 6_750_000, 135_000_000))
    assert lines == [
        "loading org/model: 10%, 14 of 135 million weights",
        "loading org/model: 40%, 54 of 135 million weights",
        "loading org/model: 70%, 94 of 135 million weights",
        "loading org/model: 100%, 135 of 135 million weights",
    ]


def test_what_is_read_at_once_is_not_worth_a_line(lines: list[str]) -> None:
    reporter("org/model")(Progress(135_000_000, 135_000_000))
    assert lines == []
