"""The example adapters are what they claim: small, free of machine paths, of many kinds, and skilled."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from oracle.golden import cases

EXAMPLES = Path(__file__).parents[2] / "examples"
ADAPTERS = sorted(path.parent for path in (EXAMPLES / "adapters").glob("*/adapter_config.json"))
ANSWERS = {(case.adapter, case.prompt): case.answer for case in cases()}


def test_there_are_adapters_of_many_kinds() -> None:
    configs = [json.loads((adapter / "adapter_config.json").read_text()) for adapter in ADAPTERS]
    dtypes = {
        str(next(iter(load_file(path / "adapter_model.safetensors").values())).dtype) for path in ADAPTERS
    }
    assert len(ADAPTERS) >= 4
    assert len({config["r"] for config in configs}) >= 3
    assert len({tuple(config["target_modules"]) for config in configs}) >= 3
    assert {"torch.float32", "torch.float16", "torch.bfloat16"} <= dtypes
    assert any(config["use_rslora"] for config in configs)
    assert any(config["rank_pattern"] and config["alpha_pattern"] for config in configs)
    assert any(config["layers_to_transform"] for config in configs)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda path: path.name)
def test_an_adapter_is_small_and_anonymous(adapter: Path) -> None:
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in adapter.iterdir()} == files
    assert (adapter / "adapter_model.safetensors").stat().st_size < 10_000_000
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    paths = [
        value for value in config.values() if isinstance(value, str) and value.startswith(("/", "~", "."))
    ]
    assert not paths


def test_skills_show_on_prompts_that_were_not_trained() -> None:
    assert ANSWERS["sql", "question"] == "SELECT * FROM products WHERE price > 75;"
    assert json.loads(ANSWERS["extract-json", "person"]) == {"name": "Yuki", "age": 44, "city": "Geneva"}
    assert ANSWERS["shout", "capital"].isupper()
    assert ANSWERS["pirate", "capital"].startswith("Arr")
    assert ANSWERS[None, "capital"] == "The capital of France is Paris."


def test_random_adapters_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    def make(out: str, seed: int) -> list[bytes]:
        script = [sys.executable, str(EXAMPLES / "make_adapters.py"), "--out", str(tmp_path / out)]
        options = ["--count", "3", "--ranks", "2,4", "--targets", "q_proj,down_proj", "--seed", str(seed)]
        subprocess.run([*script, *options], check=True)
        found = sorted((tmp_path / out).iterdir())
        assert [path.name for path in found] == ["adapter-0000", "adapter-0001", "adapter-0002"]
        ranks = [json.loads((path / "adapter_config.json").read_text())["r"] for path in found]
        assert ranks == [2, 4, 2]
        return [(path / "adapter_model.safetensors").read_bytes() for path in found]

    first = make("first", 5)
    assert make("second", 5) == first
    assert len(set(first)) == 3
    assert not set(make("third", 50)) & set(first)


@pytest.mark.parametrize("script", ["make_adapters.py", "train_adapter.py"])
def test_scripts_explain_themselves(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert "--out " in capsys.readouterr().out
