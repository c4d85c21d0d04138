"""A model that would not give transformers' numbers is refused before it is served, naming what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shard_driver import make_engine, tiny_model, warmup_request

from lorikeet_server.errors import ModelError
from lorikeet_server.models.registry import configure


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tiny_model(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": None}, "one architecture"),
        ({"architectures": 5}, "one architecture"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}, "rope_parameters .* differ by layer"),
        ({"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"rope_scaling": "dynamic"}, "'dynamic' in config.json are no rotary settings"),
        ({"vocab_size": None}, "unusable value"),
        ({"vocab_size": float("inf")}, "unusable value"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 in config.json is outside 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0 in config.json is outside 1"),
        ({"head_dim": -12}, "head_dim -12 in config.json is outside 1"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings 1099511627776 .* is outside 1"),
        ({"head_dim": 3}, "heads of 3 have no rotary positions"),
        ({"intermediate_size": 90}, "gate_proj.weight has shape"),
        ({"head_dim": 16}, "q_proj.weight has shape"),
    ],
)
def test_config(path: Path, change: dict[str, Any], message: str) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        make_engine(path, path / "store")


def test_a_missing_field() -> None:
    with pytest.raises(ModelError, match="lacks num_attention_heads"):
        configure({"architectures": ["LlamaForCausalLM"]})


def test_values_beyond_float16(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][3, 4] = -70000.0
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelError, match=f"{name} has values beyond float16"):
        make_engine(path, path / "store", mode="float16")
    make_engine(path, path / "store", mode="bfloat16")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bool])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_weights_that_want_a_scale(path: Path, name: str, dtype: torch.dtype) -> None:
    """Where only a file that transformers does not read says that the checkpoint is quantised."""
    tensors = load_file(path / "model.safetensors")
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelError, match=f"{name} is stored as {str(dtype).removeprefix('torch.')}; quant"):
        make_engine(path, path / "store", mode="bfloat16")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(path: Path, value: float) -> None:
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.weight"][3, 4] = value
    save_file(tensors, path / "model.safetensors")
    engine = make_engine(path, path / "store")
    with pytest.raises(ModelError, match=r"does not run: .* not finite; are there NaN or infinite weights"):
        engine.warmup(warmup_request())


SIZES = {
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1000,
    "sliding_window": 300,
}


@pytest.mark.parametrize(
    ("family", "change", "windows"),
    [
        ("Mistral", {}, (300, 300, 300)),
        ("Mistral", {"sliding_window": None}, (None, None, None)),
        ("Qwen2", {}, (None, None, None)),
        ("Qwen2", {"use_sliding_window": True}, (None, None, None)),  # from layer 28 on
        ("Qwen3", {"use_sliding_window": True, "max_window_layers": 1}, (None, 300, 300)),
        ("Llama", {}, (None, None, None)),
        ("Gemma2", {}, (300, None, 300)),
        ("Gemma2", {"layer_types": ["full_attention"] * 3}, (None, None, None)),
    ],
)
def test_windows(family: str, change: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    config = configure({"architectures": [f"{family}ForCausalLM"], **SIZES, **change})
    assert config.windows == windows
    assert config.max_positions == 1000  # a window bounds no position


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("Mistral", {"sliding_window": 0}, "sliding_window 0 in config.json hides every key"),
        ("Qwen2", {"layer_types": ["full_attention"]}, "names 1 layers, the model has 3"),
        ("Qwen3", {"layer_types": ["chunked_attention"] * 3}, "layer type 'chunked_attention'"),
        ("Qwen3", {"layer_types": ["sliding_attention"] * 3}, "no sliding_window in use"),
        ("Gemma2", {"hidden_activation": "gelu"}, "hidden_act 'gelu'"),
        (
            "Gemma2",
            {"attn_logit_softcapping": 0},
            "attn_logit_softcapping 0.0 in config.json must be above 0",
        ),
        (
            "Gemma2",
            {"query_pre_attn_scalar": None},
            "query_pre_attn_scalar None in config.json is not a number",
        ),
        ("Gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_windows_and_caps_that_mean_nothing(family: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        configure({"architectures": [f"{family}ForCausalLM"], **SIZES, **change})


def test_a_window_that_mistral_leaves_out_is_what_transformers_takes() -> None:
    import transformers

    given = {name: value for name, value in SIZES.items() if name != "sliding_window"}
    config = configure({"architectures": ["MistralForCausalLM"], **given})
    assert config.windows == (transformers.MistralConfig().sliding_window,) * 3


def test_what_gemma_leaves_out_is_what_transformers_takes() -> None:
    import transformers

    given = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 8}
    given |= {"vocab_size": 10, "intermediate_size": 8}
    ours = configure({"architectures": ["Gemma2ForCausalLM"], **given})
    theirs = transformers.Gemma2Config(**given)
    assert (ours.head_dim, ours.num_kv_heads) == (theirs.head_dim, theirs.num_key_value_heads)
    assert (ours.attention_cap, ours.logit_cap) == (
        theirs.attn_logit_softcapping,
        theirs.final_logit_softcapping,
    )
    assert ours.windows == (theirs.sliding_window, None, theirs.sliding_window)
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.attention_scale == theirs.query_pre_attn_scalar**-0.5
    assert ours.tied is theirs.tie_word_embeddings and ours.norm_eps == theirs.rms_norm_eps


@pytest.mark.parametrize("mode", ["float16", "bfloat16"])
def test_rounded_modes_stay_near(path: Path, mode: str) -> None:
    """The engine rounds weights once and nothing else."""
    from shard_driver import Driver, expected_logprobs, prompt_of

    model = tiny_model(path)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(parameter.to(getattr(torch, mode)))
    engine = make_engine(path, path / "store", mode=mode)
    engine.warmup(warmup_request())
    prompt = prompt_of(40, 1)
    (run,) = Driver(engine).generate([prompt], 1, prompt_logprobs=True)
    expected = expected_logprobs(model, prompt)[torch.arange(39), torch.tensor(prompt[1:])]
    assert run.prompt_logprobs == pytest.approx(expected.tolist(), abs=1e-4)
