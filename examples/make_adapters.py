"""Writes any number of random LoRA adapters: real files of real size, for load tests and benchmarks.

    python examples/make_adapters.py --out /tmp/adapters --count 1000 --ranks 8,16 --targets q_proj,v_proj

Each differs from the others and from the base enough to change what the model says, and little enough that it
still says something. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from lorikeet_server.weights.demo import DEMO_ID
from lorikeet_server.weights.prepare import prepare

DEMO_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Shape:
    """What an adapter needs to know of its base model: layers and the widths `(in, out)` of each linear."""

    layers: int
    widths: dict[str, tuple[int, int]]

    @classmethod
    def read(cls, config_path: Path) -> Shape:
        config = json.loads(config_path.read_text())
        hidden, heads, ffn = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
        head_dim = config.get("head_dim") or hidden // heads
        queries, keys = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
        widths = {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, ffn),
            "up_proj": (hidden, ffn),
            "down_proj": (ffn, hidden),
        }
        return cls(config["num_hidden_layers"], widths)


@dataclass(frozen=True)
class Recipe:
    """What the adapters have in common. `strength`: size of a LoRA's output for inputs of size one."""

    rank: int
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dtype: torch.dtype = torch.float16
    strength: float = 0.2
    base: str = DEMO_BASE

    def tensors(self, shape: Shape, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer in range(shape.layers):
            for target in self.targets:
                part = "self_attn" if target in ATTENTION else "mlp"
                prefix = f"base_model.model.model.layers.{layer}.{part}.{target}"
                width_in, width_out = shape.widths[target]
                a = torch.randn(self.rank, width_in, generator=generator) / width_in**0.5
                b = torch.randn(width_out, self.rank, generator=generator) * self.strength / self.rank**0.5
                tensors[f"{prefix}.lora_A.weight"] = a.to(self.dtype)
                tensors[f"{prefix}.lora_B.weight"] = b.to(self.dtype)
        return tensors

    def config(self) -> dict[str, object]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": self.rank,
            "lora_dropout": 0.0,
            "target_modules": list(self.targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }


def make_adapter(directory: Path, shape: Shape, recipe: Recipe, seed: int) -> Path:
    """Writes one adapter as PEFT lays it out and returns its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(recipe.config(), indent=2) + "\n")
    weights = directory / "adapter_model.safetensors"
    save_file(recipe.tensors(shape, seed), weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description="Write random LoRA adapters.")
    parser.add_argument(
        "--out", type=Path, required=True, help="the adapters become OUT/adapter-0000 and so on"
    )
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--ranks", default="8", help="comma-separated; the adapters take them in turn")
    parser.add_argument("--targets", default="q_proj,v_proj", help="comma-separated module names, or all")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--strength", type=float, default=0.2)
    parser.add_argument("--model", default=DEMO_ID, help="base model, as lorikeet's --model-id takes it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shape = Shape.read(prepare(arguments.model).tokenizer_path / "config.json")
    targets = tuple(shape.widths) if arguments.targets == "all" else tuple(arguments.targets.split(","))
    base = DEMO_BASE if arguments.model == DEMO_ID else arguments.model
    ranks = [int(rank) for rank in arguments.ranks.split(",")]

    def make(index: int) -> None:
        rank = ranks[index % len(ranks)]
        recipe = Recipe(rank, targets, getattr(torch, arguments.dtype), arguments.strength, base)
        make_adapter(arguments.out / f"adapter-{index:04d}", shape, recipe, arguments.seed + index)

    # Drawing and writing let other threads run; an adapter of a large model takes a second of each.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, range(arguments.count)))


if __name__ == "__main__":
    main()
