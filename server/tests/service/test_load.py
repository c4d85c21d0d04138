"""What is said while weights are read, and what is refused before."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loguru import logger
from shard_driver import tiny_model

from lorikeet_server.config import MAX_LORA_RANK, Device, Dtype, GroupConfig, ServeConfig
from lorikeet_server.errors import ConfigError
from lorikeet_server.models import registry
from lorikeet_server.service.load import load_engine, open_store, reporter
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


def test_a_model_that_a_device_has_no_room_for_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    tiny_model(tmp_path / "model")
    monkeypatch.setattr(registry, "load", full)
    config = ServeConfig(
        model_path=tmp_path / "model",
        model_id="org/large",
        uds_path=tmp_path / "socket",
        dtype=Dtype.AUTO,
        device=Device.CPU,
        adapter_roots=(),
        store_dir=tmp_path / "store",
        disk_bytes=0,
        max_lora_rank=MAX_LORA_RANK,
        threads=1,
        group=GroupConfig.from_environment({}),
    )
    with pytest.raises(ConfigError, match=r"no room for org/large; --num-shard.*2\.00 GiB"):
        load_engine(config, lambda: None)


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--store-dir .*/file/store: Not a directory; give a directory"):
        open_store(tmp_path / "file" / "store", 0)
    open_store(tmp_path / "store", 0)
    assert list((tmp_path / "store").iterdir()) == []
