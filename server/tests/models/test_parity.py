"""Every family gives the numbers that transformers gives, on every backend."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from shard_driver import (
    Driver,
    expected_logprobs,
    expected_tokens,
    make_engine,
    prompt_of,
    tiny_model,
    warmup_request,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from lorikeet_server.kernels import Product, select
from lorikeet_server.pb import shard_pb2 as pb

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "no-grouping": ("llama", {"num_key_value_heads": 4}),
    "wide-head": ("llama", {"head_dim": 32}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3}),
    "linear-rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}
# Shorter than the prompts below, so that keys are hidden in most rows.
SLIDING = {"use_sliding_window": True, "sliding_window": 21}
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
# Caps that bend scores and logits of a tiny model.
CAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 6.0}
GEMMA2 = {"sliding_window": 21, "query_pre_attn_scalar": 3, **CAPS}
UNCAPPED = dict.fromkeys(CAPS)
WINDOWED: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral-window": ("mistral", {"sliding_window": 21}),
    "mistral-one-key": ("mistral", {"sliding_window": 1}),
    "qwen2-later-layers": ("qwen2", {**SLIDING, "max_window_layers": 1}),
    "qwen2-layer-types": ("qwen2", {**SLIDING, "layer_types": TYPES}),
    "qwen2-not-in-use": ("qwen2", {"sliding_window": 21, "max_window_layers": 0}),
    "qwen3-later-layers": ("qwen3", {**SLIDING, "max_window_layers": 2}),
    "qwen3-layer-types": ("qwen3", {**SLIDING, "layer_types": TYPES}),
    "gemma2": ("gemma2", GEMMA2),
    "gemma2-tied-uncapped": (
        "gemma2",
        {**GEMMA2, **UNCAPPED, "tie_word_embeddings": True, "layer_types": TYPES},
    ),
}
VARIANTS |= WINDOWED


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_matches_transformers(variant: str, backend: str, tmp_path: Path) -> None:
    family, settings = VARIANTS[variant]
    model = tiny_model(tmp_path / "model", family, **settings)
    engine = make_engine(tmp_path / "model", tmp_path / "store", backend)
    engine.warmup(warmup_request())
    prompt = prompt_of(75, seed=1)
    (run,) = Driver(engine).generate(
        [prompt], 20, prompt_logprobs=True, prompt_top_logprobs=2, sampling=pb.Sampling(top_logprobs=3)
    )
    assert run.errors == []
    assert run.tokens == expected_tokens(model, prompt, 20)

    expected = expected_logprobs(model, prompt + run.tokens)
    seen = torch.tensor(run.logprobs)
    index = torch.arange(20)
    assert torch.allclose(seen, expected[74:-1][index, torch.tensor(run.tokens)], atol=1e-4)
    seen = torch.tensor(run.prompt_logprobs)
    assert torch.allclose(seen, expected[:74][torch.arange(74), torch.tensor(prompt[1:])], atol=1e-4)

    best = expected[74:-1].topk(3)
    assert [[token for token, _ in row] for row in run.alternatives] == best.indices.tolist()
    values = torch.tensor([[value for _, value in row] for row in run.alternatives])
    assert torch.allclose(values, best.values, atol=1e-4)
    best = expected[:74].topk(2)
    assert [token for token, _ in run.prompt_top] == best.indices.flatten().tolist()
    assert torch.allclose(torch.tensor([v for _, v in run.prompt_top]), best.values.flatten(), atol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("variant", ["mistral-window", "qwen3-layer-types", "gemma2"])
def test_windows_over_chunks_and_a_reused_prefix(variant: str, backend: str, tmp_path: Path) -> None:
    """Neither the chunks of a prompt nor blocks of another sequence change what a window sees."""
    family, settings = VARIANTS[variant]
    model = tiny_model(tmp_path / "model", family, **settings)
    engine = make_engine(tmp_path / "model", tmp_path / "store", backend)
    engine.warmup(warmup_request())
    driver, prompts = (
        Driver(engine),
        [prompt_of(90, seed=1), prompt_of(90, seed=1)[:60] + prompt_of(9, seed=2)],
    )
    step = pb.Step()
    first = driver.admit(step, 0, prompts[0])
    for end in (17, 50, 90):
        driver.prefill(step, first, end - first.length)
        driver.execute(step)
        step = pb.Step()
    second = driver.admit(step, 1, prompts[1], cached=first)
    assert second.length == 48
    driver.prefill(step, second)
    driver.execute(step)
    for _ in range(11):
        step = pb.Step()
        driver.decode(step, first, second)
        driver.execute(step)
    for run, prompt in zip((first, second), prompts, strict=True):
        assert run.errors == [] and run.tokens == expected_tokens(model, prompt, 12)
        expected = expected_logprobs(model, prompt + run.tokens)[len(prompt) - 1 : -1]
        assert torch.allclose(
            torch.tensor(run.logprobs), expected[torch.arange(12), torch.tensor(run.tokens)], atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_with_an_offset_have_the_bits_of_transformers(dtype: torch.dtype) -> None:
    """The weight is rounded, what it is above the offset is not."""
    norm = Gemma2RMSNorm(96).to(dtype)
    x, residual = torch.randn(2, 40, 96).to(dtype)
    torch.nn.init.normal_(norm.weight, std=0.2)
    kernels = select("reference", dtype=dtype)
    scale = norm.weight.detach(), norm.eps, 1.0
    assert torch.equal(kernels.rms_norm(x, *scale), norm(x))
    assert torch.equal(kernels.add_rms_norm(Product(x), residual, *scale)[0], norm(x + residual))


UNSCALED = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
READINGS: dict[str, dict[str, Any]] = {
    "llama3-as-long-as-the-model": {"rope_parameters": UNSCALED, "max_position_embeddings": 256},
    "llama3-length-beside": {"rope_parameters": LLAMA3, "original_max_position_embeddings": 64},
    "scaling-before-parameters": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "rope_theta": 700.0,
    },
    "theta-beside-parameters": {"rope_parameters": {"rope_type": "default"}, "rope_theta": 700},
    "tied-head-only": {"tie_word_embeddings": True},
    "tied-but-differing": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("name", READINGS)
def test_files_mean_what_transformers_reads(name: str, tmp_path: Path) -> None:
    """Directories as other tools write them: fields left out, given twice, or at odds with the weights."""
    tiny_model(tmp_path)
    file, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    file.write_text(json.dumps(json.loads(file.read_text()) | READINGS[name]))
    if name == "tied-head-only":
        tensors = load_file(weights)
        del tensors["model.embed_tokens.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    engine = make_engine(tmp_path, tmp_path / "store")
    engine.warmup(warmup_request())
    prompt = prompt_of(75, seed=1)
    (run,) = Driver(engine).generate([prompt], 1, prompt_logprobs=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    expected = expected_logprobs(model, prompt)[torch.arange(74), torch.tensor(prompt[1:])]
    assert torch.allclose(torch.tensor(run.prompt_logprobs), expected, atol=1e-4)
