"""Writes a Llama with random weights: the sizes of a real model without its download, for measuring.

    python -m benchmarks.gpu.random_model --geometry llama-3-8b --out /tmp/llama-3-8b

bf16 safetensors, one file for every few layers, and a byte-level tokenizer whose vocabulary is filled up with
tokens that no text makes. Weights are drawn on the GPU if there is one: 16 GB take a minute on a processor.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

LAYERS_PER_FILE = 4
END = "<|end_of_text|>"


@dataclass(frozen=True)
class Geometry:
    """The numbers of a `config.json`."""

    vocabulary: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 8192,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }

    def layer(self, index: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of one layer's tensors."""
        keys = self.hidden // self.heads * self.kv_heads
        prefix = f"model.layers.{index}"
        yield f"{prefix}.input_layernorm.weight", (self.hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (self.hidden,)
        for name, width in (("q", self.hidden), ("k", keys), ("v", keys), ("o", self.hidden)):
            yield f"{prefix}.self_attn.{name}_proj.weight", (width, self.hidden)
        yield f"{prefix}.mlp.gate_proj.weight", (self.ffn, self.hidden)
        yield f"{prefix}.mlp.up_proj.weight", (self.ffn, self.hidden)
        yield f"{prefix}.mlp.down_proj.weight", (self.hidden, self.ffn)

    def files(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """What each file holds."""
        table = (self.vocabulary, self.hidden)
        yield {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": table[1:]}
        for first in range(0, self.layers, LAYERS_PER_FILE):
            indexes = range(first, min(first + LAYERS_PER_FILE, self.layers))
            yield {name: shape for index in indexes for name, shape in self.layer(index)}


GEOMETRIES = {
    "llama-3-8b": Geometry(128256, 4096, 14336, 32, 32, 8),
    "tiny": Geometry(32000, 64, 128, 3, 4, 2),
}


def write(directory: Path, geometry: Geometry, seed: int = 0) -> Path:
    """Writes the model unless it is there whole, and returns `directory`."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer(geometry.vocabulary).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    (directory / "config.json").write_text(json.dumps(geometry.config(), indent=1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    files = list(geometry.files())
    places: dict[str, str] = {}
    for number, shapes in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {key: draw(shape, generator) for key, shape in shapes.items()}
        save_file(tensors, directory / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    if device == "cuda":
        torch.cuda.empty_cache()  # this process may live beside a server
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))  # last: it says that all is there
    return directory


def draw(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Ones for a norm; else normal, so scaled that a product keeps the size of its input."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    tensor = torch.empty(shape, dtype=torch.bfloat16, device=generator.device)
    return tensor.normal_(std=1 / math.sqrt(shape[1]), generator=generator).cpu()


def tokenizer(vocabulary: int) -> Tokenizer:
    """Bytes, one special token, and filling."""
    symbols = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    symbols += [f"token{number}" for number in range(len(symbols), vocabulary)]
    made = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="llama-3-8b")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(write(arguments.out, GEOMETRIES[arguments.geometry], arguments.seed))


if __name__ == "__main__":
    main()
