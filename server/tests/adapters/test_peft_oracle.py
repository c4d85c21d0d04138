"""What PEFT computes for a config is what we compute for it: the weight update of every module, and none
besides.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adapter_files as build
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from lorikeet_server.adapters.staged import StagedAdapter
from lorikeet_server.errors import InvalidAdapterError

UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2|o_proj|up_proj|down_proj|gate_proj|linear).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
    r"(?:(?:k_proj|v_proj|q_proj|o_proj|up_proj|down_proj)))"
)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, dict[str, Any]] = {
    "defaults": {"target_modules": ["q_proj", "v_proj"]},
    "alpha": {"target_modules": ["o_proj"], "r": 3, "lora_alpha": 7},
    "negative alpha": {"target_modules": ["o_proj"], "lora_alpha": -4},
    "rank 1": {"target_modules": ALL, "r": 1, "lora_alpha": 16},
    "rank above width": {"target_modules": ["k_proj"], "r": 40},
    "rslora": {"target_modules": ALL, "r": 12, "lora_alpha": 5, "use_rslora": True},
    "all-linear": {"target_modules": "all-linear"},
    "All-Linear": {"target_modules": "All-Linear", "exclude_modules": ["v_proj"]},
    "lm_head": {"target_modules": ["lm_head", "q_proj"]},
    "name that no module has": {"target_modules": ["q_proj", "query_key_value"]},
    "full names": {"target_modules": ["model.layers.1.self_attn.q_proj", "layers.0.mlp.up_proj", "v_proj"]},
    "suffix is a component": {"target_modules": ["self_attn.q_proj", "proj", "down_proj"]},
    "regex": {"target_modules": r".*\.(q|v)_proj"},
    "regex with class": {"target_modules": r"model\.layers\.[02]\.(self_attn|mlp)\.\w+_[a-z]{4}"},
    "regex with counts": {"target_modules": r"(\w+\.){3}self_attn\.[^qk]_proj"},
    "regex with lookahead": {"target_modules": r"^(?!.*layers\.1\.)(?!lm_head).*_proj$"},
    "regex with lookbehind": {"target_modules": r".*(?<=mlp\.)\w+_proj"},
    "regex with boundary": {"target_modules": r".*\bup_proj\b"},
    "unsloth": {"target_modules": UNSLOTH},
    "exclude list": {"target_modules": ALL, "exclude_modules": ["layers.1.mlp.up_proj", "k_proj"]},
    "exclude regex": {"target_modules": ALL, "exclude_modules": r".*layers\.[01].*"},
    "layers": {"target_modules": ALL, "layers_to_transform": [0, 2]},
    "one layer": {"target_modules": ALL, "layers_to_transform": 1},
    "layers pattern": {"target_modules": ALL, "layers_to_transform": [1], "layers_pattern": "layers"},
    "layers patterns": {"target_modules": ALL, "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    "full name beats layers": {
        "target_modules": ["model.layers.2.self_attn.q_proj", "v_proj"], "layers_to_transform": [0],
    },
    "no layers": {"target_modules": ["q_proj"], "layers_to_transform": []},
    "rank pattern": {"target_modules": ALL, "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 5}},
    "patterns are tried in order": {
        "target_modules": ALL,
        "rank_pattern": {r"layers\.\d+\.self_attn\.[qk]_proj": 3, "q_proj": 2, r".*mlp.*": 6},
        "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32, "(up|down)_proj": 1},
    },
    "pattern ends the name": {"target_modules": ALL, "rank_pattern": {"proj": 2, "self_attn": 3, "_proj": 4}},
    "pattern breaks out of its group": {"target_modules": ALL, "rank_pattern": {"q_proj)|(model.*up": 2}},
    "rslora with patterns": {
        "target_modules": ALL, "use_rslora": True, "rank_pattern": {"k_proj": 9},
        "alpha_pattern": {"k_proj": 3.5},
    },
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "no init": {"target_modules": ["q_proj"], "init_lora_weights": False},
    "orthogonal": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
}  # fmt: skip


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=build.HIDDEN, intermediate_size=build.MLP, vocab_size=build.VOCAB,
            num_hidden_layers=build.LAYERS, num_attention_heads=4, num_key_value_heads=2,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def save(options: dict[str, Any], directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """Save an adapter of this config with random weights, as PEFT does."""
    model = get_peft_model(tiny_llama(), LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    model.save_pretrained(str(directory), save_embedding_layers=False)


def load(directory: Path) -> PeftModel:
    """What PEFT makes of the files. That can differ from what it trained: patterns are sorted when they are
    saved.
    """
    return PeftModel.from_pretrained(tiny_llama(), str(directory))


def expected(model: PeftModel) -> Iterator[tuple[str, torch.Tensor]]:
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            yield name.removeprefix("base_model.model."), module.get_delta_weight("default").detach().float()


def assert_same(staged: StagedAdapter, model: PeftModel, tolerance: float = 0.0) -> None:
    wanted = dict(expected(model))
    found = build.matrices(staged)
    assert set(found) == set(wanted)
    for name, each in found.items():
        ours = (each.b.float() @ each.a.float()) * each.scale
        torch.testing.assert_close(ours, wanted[name], rtol=1e-5 + tolerance, atol=1e-5 + tolerance)


@pytest.mark.parametrize("name", CASES)
def test_configs(name: str, tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    save(CASES[name], tmp_path / "root/a")
    assert_same(lib.stage(build.fetch(lib, "a")), load(tmp_path / "root/a"))


@pytest.mark.parametrize("seed", range(24))
def test_random_configs(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    leaves = rng.sample(ALL, rng.randint(1, len(ALL)))
    options: dict[str, Any] = {
        "r": rng.randint(1, 24),
        "lora_alpha": rng.randint(1, 64),
        "use_rslora": rng.random() < 0.5,
        "target_modules": leaves if rng.random() < 0.6 else rf".*({'|'.join(leaves)})",
        "rank_pattern": {pattern(rng): rng.randint(1, 24) for _ in range(rng.randint(0, 4))},
        "alpha_pattern": {pattern(rng): rng.randint(1, 64) for _ in range(rng.randint(0, 4))},
    }
    if isinstance(options["target_modules"], list) and rng.random() < 0.5:
        options["layers_to_transform"] = rng.sample(range(build.LAYERS), rng.randint(1, build.LAYERS))
    lib = build.library(tmp_path)
    save(options, tmp_path / "root/a")
    try:
        model = load(tmp_path / "root/a")
    except (
        RuntimeError
    ):  # the sorted patterns give other ranks than the ones trained: PEFT cannot read its own file
        with pytest.raises(InvalidAdapterError, match="has the shape"):
            build.fetch(lib, "a")
    else:
        assert_same(lib.stage(build.fetch(lib, "a")), model)


def pattern(rng: random.Random) -> str:
    leaf, layer = rng.choice(ALL), rng.randrange(build.LAYERS)
    return rng.choice(
        [
            leaf,
            rf"layers\.{layer}\..*",
            rf".*\.{layer}\.\w+\.{leaf}",
            f"{leaf[0]}.*",
            r"mlp\.(up|gate)_proj",
            "attn",
        ]
    )


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("served", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(stored: torch.dtype, served: torch.dtype, tmp_path: Path) -> None:
    lib = build.library(tmp_path, dtype=served)
    save({"target_modules": ALL}, tmp_path / "root/a", dtype=stored)
    staged = lib.stage(build.fetch(lib, "a"))
    assert {each.a.dtype for each in build.matrices(staged).values()} == {served}
    assert_same(staged, load(tmp_path / "root/a"), tolerance=0.0 if served == torch.float32 else 0.15)


@pytest.mark.parametrize("world", [2, 4])
def test_slices_of_all_ranks_make_the_whole(world: int, tmp_path: Path) -> None:
    whole = build.library(tmp_path)
    save({"target_modules": [*ALL, "lm_head"], "r": 5}, tmp_path / "root/a")
    digest = build.fetch(whole, "a")
    deltas = {name: each.b @ each.a for name, each in build.matrices(whole.stage(digest)).items()}
    libraries = [build.library(tmp_path, rank=rank, world=world) for rank in range(world)]
    parts = [build.matrices(each.stage(digest)) for each in libraries]
    for name, delta in deltas.items():
        columns = name.endswith(build.ROW_PARALLEL)
        together = torch.cat([part[name].b @ part[name].a for part in parts], dim=1 if columns else 0)
        torch.testing.assert_close(together, delta)


OLD_FORMATS: dict[str, dict[str, Any]] = {
    "peft 0.2": {
        "base_model_name_or_path": "x", "bias": "none", "enable_lora": None, "fan_in_fan_out": False,
        "inference_mode": True, "lora_alpha": 16, "lora_dropout": 0.05, "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
    },
    "peft 0.6": {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "x", "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "layers_pattern": None,
        "layers_to_transform": None, "lora_alpha": 16, "lora_dropout": 0.0, "modules_to_save": None,
        "peft_type": "LORA", "r": 8, "rank_pattern": {}, "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    },
    "as little as possible": {"peft_type": "LORA", "target_modules": ["v_proj", "q_proj"], "lora_alpha": 16},
    "a newer peft, new options off": {
        "peft_type": "LORA", "target_modules": ["v_proj", "q_proj"], "lora_alpha": 16,
        "peft_version": "9.9.9",
        "use_future": False, "future_config": None, "future_list": [], "future_name": "",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OLD_FORMATS)
def test_configs_of_other_versions(name: str, tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    save({"target_modules": ["q_proj", "v_proj"], "lora_alpha": 16}, tmp_path / "root/a")
    (tmp_path / "root/a/adapter_config.json").write_text(json.dumps(OLD_FORMATS[name]))
    assert_same(lib.stage(build.fetch(lib, "a")), load(tmp_path / "root/a"))


def test_keys_with_the_adapter_name(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    values = build.tensors()
    renamed = {name.replace(".weight", ".default.weight"): value for name, value in values.items()}
    build.write(tmp_path / "root/a", build.config(), build.safetensors(renamed))
    build.write(tmp_path / "root/b", build.config(), build.safetensors(values))
    a, b = (lib.stage(build.fetch(lib, name)) for name in "ab")
    assert torch.equal(a.matrices.memory, b.matrices.memory)
