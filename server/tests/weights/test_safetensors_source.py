"""A model directory of safetensors gives its tensors whole or in slices, from one file or many."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from lorikeet_server.weights import Progress, ReportingSource, Slice, WeightsError, open_source
from lorikeet_server.weights.safetensors import INDEX


@pytest.fixture(params=["1GB", "50KB"], ids=["one-file", "sharded"])
def directory(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: LlamaForCausalLM) -> Path:
    tiny_model.save_pretrained(tmp_path / "model", max_shard_size=request.param)
    return tmp_path / "model"


def test_tensors_whole_and_in_slices(directory: Path, tiny_model: LlamaForCausalLM) -> None:
    source = open_source(directory)
    expected = tiny_model.state_dict()
    assert source.names() == sorted(expected)
    for name, tensor in expected.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert torch.equal(source.load(name), tensor)
        for dim, size in enumerate(tensor.shape):
            part = source.load(name, Slice(dim, 1, size - 1))
            assert part.is_contiguous()
            assert torch.equal(part, tensor.narrow(dim, 1, size - 2))


def test_stored_dtype_is_kept(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    tensors = {kind: torch.ones(2, 2).to(getattr(torch, kind)) for kind in ("bfloat16", "float16", "float32")}
    save_file(tensors, tmp_path / "model.safetensors")
    source = open_source(tmp_path)
    assert {name: source.load(name).dtype for name in source.names()} == {
        kind: tensor.dtype for kind, tensor in tensors.items()
    }


def test_progress_reaches_the_total(directory: Path) -> None:
    reports: list[Progress] = []
    source = ReportingSource(open_source(directory), reports.append)
    for name in source.names():
        source.load(name)
    assert [report.done for report in reports] == sorted(report.done for report in reports)
    assert reports[-1].done == reports[-1].total > 0


def test_one_whole_file_is_the_model(tmp_path: Path) -> None:
    """Whatever lies beside it, as in transformers."""
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    for name in ("model_ema", "model-00001-of-00001", "model.fp16"):
        save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    weight_map = dict.fromkeys("ab", "model-00001-of-00001.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    source = open_source(tmp_path)
    assert source.names() == ["a"] and torch.equal(source.load("a"), torch.ones(2))


def test_one_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("one", "two"):
        save_file({"a": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match=r"one\.safetensors and two\.safetensors both hold a"):
        open_source(tmp_path)


def test_a_copy_beside_the_shards_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(2), "b": torch.zeros(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "two.safetensors")
    save_file({"a": torch.zeros(9)}, tmp_path / "consolidated.safetensors")
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    source = open_source(tmp_path)
    assert torch.equal(source.load("a"), torch.ones(2))
    assert torch.equal(source.load("b"), torch.ones(2))


def test_missing_and_bad_files_are_named(directory: Path, tmp_path: Path) -> None:
    def refused(path: Path, reason: str) -> None:
        with pytest.raises(WeightsError, match=reason) as caught:
            open_source(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nowhere", "cannot read .*config.json")
    broken = tmp_path / "broken"
    shutil.copytree(directory, broken)
    weights = sorted(broken.glob("*.safetensors"))[0]
    content = weights.read_bytes()
    deep = (200_000).to_bytes(8, "little") + b"[" * 200_000
    short = content[:4], content[:100], content[:-1]
    for cut in (*short, b"\xff" * 64, b"\x08" + b"\0" * 7 + b"[1, 2, 3]", deep):
        weights.write_bytes(cut)
        refused(broken, "not a usable safetensors file")
    for weights in broken.glob("*.safetensors"):
        weights.unlink()
    refused(broken, "cannot read weights" if (broken / INDEX).exists() else r"\.bin weights are not read")
    for text in ("[", "[" * 200_000):
        (broken / "config.json").write_text(text)
        refused(broken, "is not JSON")


def test_an_index_cannot_leave_its_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "../other/model.safetensors"}}')
    with pytest.raises(WeightsError, match="outside its directory"):
        open_source(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {"a": 5}, {"a": ["one.safetensors"]}, {"a": None}])
def test_an_index_without_file_names_is_refused(tmp_path: Path, weight_map: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match="has no weight_map of file names"):
        open_source(tmp_path)


def test_an_absent_tensor_is_named(directory: Path) -> None:
    with pytest.raises(WeightsError, match="no tensor missing"):
        open_source(directory).load("missing")
    with pytest.raises(WeightsError, match=r"no slice 0\.\.65"):
        open_source(directory).load("model.norm.weight", Slice(0, 0, 65))


def test_digest_follows_the_content_and_not_the_place(directory: Path, tmp_path: Path) -> None:
    digest = open_source(directory).digest
    copy = tmp_path / "elsewhere"
    shutil.copytree(directory, copy)
    assert open_source(copy).digest == digest
    weights = sorted(copy.glob("*.safetensors"))[-1]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = open_source(copy).digest
    assert changed != digest
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    assert open_source(copy).digest not in (digest, changed)
