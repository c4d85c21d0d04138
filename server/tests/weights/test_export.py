"""An exported model computes what the original does, and what transformers makes of the GGUF by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lorikeet_server.weights import open_source
from lorikeet_server.weights.export import export, main


def test_an_exported_gguf_computes_what_the_original_computes(
    write_gguf: Any, tiny_model: LlamaForCausalLM, tmp_path: Path
) -> None:
    path = write_gguf(metadata={"tokenizer.ggml.merges": ["t a"], "tokenizer.ggml.tokens": TOKENS})
    directory = export(str(path), tmp_path / "out", cache_dir=tmp_path / "cache")
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(tokens).logits, tiny_model(tokens).logits)
    assert AutoTokenizer.from_pretrained(directory)("ta")["input_ids"] == [TOKENS.index("ta")]


TOKENS = ["<|end|>", "t", "a", "ta", *(f"x{index}" for index in range(253))]


def test_an_exported_directory_is_itself(tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    source = open_source(export(str(tmp_path / "in"), tmp_path / "out"))
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(source.load(name), tensor)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_the_command_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["export", "--model", "./missing", "--out", str(tmp_path / "out")])
    assert main() == 1
    assert capsys.readouterr().err == "error: --model-id ./missing: no such directory or .gguf file\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_demo_model_is_what_transformers_reads_from_the_gguf(demo_gguf: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(
        demo_gguf.parent, gguf_file=demo_gguf.name, dtype=torch.float32
    )
    ours = open_source(demo_gguf)
    state = theirs.state_dict()
    assert set(state) - set(ours.names()) == {"lm_head.weight"}
    for name in ours.names():
        assert torch.equal(ours.load(name), state[name]), name
    for field, value in ours.config.items():
        if field in ("hidden_size", "num_key_value_heads", "rope_theta", "rms_norm_eps", "vocab_size"):
            found = (
                theirs.config.rope_parameters[field]
                if field == "rope_theta"
                else getattr(theirs.config, field)
            )
            assert found == pytest.approx(value, rel=1e-6), field
