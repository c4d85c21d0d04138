"""Adapters of every kind that is served, on a small model: tokens and log-probabilities equal PEFT's,
alone and mixed.
"""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.models import write_adapter
from support.peft_oracle import Oracle
from support.server import Server, token_ids
from transformers import AutoModelForCausalLM

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]

CONFIGS: dict[str, dict[str, object]] = {
    "rank-1": {"r": 1, "lora_alpha": 3, "target_modules": ["q_proj"]},
    "rank-3-odd": {"r": 3, "lora_alpha": 5, "target_modules": ["k_proj", "down_proj"]},
    "rank-64": {"r": 64, "lora_alpha": 64, "target_modules": LINEAR},
    "rank-200": {"r": 200, "lora_alpha": 16, "target_modules": ["v_proj", "o_proj"]},
    "rslora": {"r": 16, "lora_alpha": 16, "use_rslora": True, "target_modules": LINEAR},
    "rank-pattern": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 12, "layers.1.mlp.up_proj": 2},
        "target_modules": LINEAR,
    },
    "alpha-pattern": {
        "r": 4,
        "lora_alpha": 8,
        "alpha_pattern": {"layers.0.self_attn.v_proj": 40, "mlp.down_proj": 1},
        "target_modules": LINEAR,
    },
    "both-patterns-rslora": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {"o_proj": 9},
        "alpha_pattern": {"o_proj": 3},
        "target_modules": ATTENTION,
    },
    "one-layer": {"r": 8, "lora_alpha": 16, "layers_to_transform": [1], "target_modules": ATTENTION},
    "regex": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": r".*layers\.[02]\.(self_attn\.q_proj|mlp\.gate_proj)",
    },
    "all-linear": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    "mixed-dtypes": {"r": 8, "lora_alpha": 16, "target_modules": LINEAR},
    "excluded": {"r": 8, "lora_alpha": 16, "target_modules": LINEAR, "exclude_modules": ["up_proj"]},
}
# What their tensors are saved in, in turn; the others in fp32.
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "rank-64": (torch.bfloat16,),
    "one-layer": (torch.float16,),
    "mixed-dtypes": (torch.float16, torch.bfloat16, torch.float32),
}


@pytest.fixture(scope="module")
def root(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One adapter for each entry of CONFIGS, saved by PEFT itself, and one in the form PEFT wrote years
    ago.
    """
    root = tmp_path_factory.mktemp("kinds")
    for seed, (name, options) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(task_type="CAUSAL_LM", **options)
        )
        dtypes = itertools.cycle(DTYPES.get(name, (torch.float32,)))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.15)
                parameter.data = parameter.data.to(next(dtypes))
        model.save_pretrained(root / name)
    write_adapter(
        root / "two-years-old",
        rank=8,
        seed=5,
        fan_in_fan_out=False,
        init_lora_weights=True,
        layers_pattern=None,
        layers_to_transform=None,
        modules_to_save=None,
        revision=None,
    )
    return root


@pytest.fixture(scope="module")
def server(tiny: Path, root: Path) -> Iterator[Server]:
    with Server(str(tiny), [root], ["--dtype", "float32", "--max-active-adapters", "5"]) as server:
        yield server


@pytest.fixture(scope="module")
def oracle(tiny: Path) -> Oracle:
    return Oracle(tiny)


NAMES: list[str | None] = [None, *CONFIGS, "two-years-old"]
PROMPT = "What does each adapter say to this?"


def check(server: Server, oracle: Oracle, root: Path, name: str | None, prompt: str) -> None:
    answer = server.generate(prompt, name, max_new_tokens=20, ignore_eos_token=True)
    prompt_ids = [token["id"] for token in server.client.post("/tokenize", json={"inputs": prompt}).json()]
    ids, logprobs = oracle.greedy(prompt_ids, 20, root / name if name else None)
    assert token_ids(answer) == ids
    assert [token["logprob"] for token in answer["details"]["tokens"]] == pytest.approx(logprobs, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_alone(server: Server, oracle: Oracle, root: Path, name: str | None) -> None:
    check(server, oracle, root, name, PROMPT)


def test_mixed_beyond_the_device_slots(server: Server, oracle: Oracle, root: Path) -> None:
    """Every kind at once, three times over, with 5 device slots for 14 adapters."""
    expected = {}
    prompt_ids = [token["id"] for token in server.client.post("/tokenize", json={"inputs": PROMPT}).json()]
    for name in NAMES:
        expected[name] = oracle.greedy(prompt_ids, 20, root / name if name else None)[0]
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        answers = [
            (name, pool.submit(server.generate, PROMPT, name, max_new_tokens=20, ignore_eos_token=True))
            for _ in range(3)
            for name in NAMES
        ]
        for name, answer in answers:
            assert token_ids(answer.result()) == expected[name], name
    assert server.metrics()['lorikeet_adapter_evictions_total{tier="device"}'] > 0
