"""Small models and adapters, made from a seed so that every run has the same."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TINY_NAME = "tiny-llama-1m"
HIDDEN, LAYERS, HEADS, KV_HEADS, FFN = 64, 3, 4, 2, 128


def tiny_model(directory: Path) -> Path:
    """A random Llama (fp32, GQA, tied embeddings) with a byte-level tokenizer, saved as
    `directory/TINY_NAME`.
    """
    target = directory / TINY_NAME
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    torch.manual_seed(7)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=HIDDEN,
            intermediate_size=FFN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.2,
        )
    )
    model.save_pretrained(target)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    fast.chat_template = (
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}[assistant]"
    )
    fast.save_pretrained(target)
    return target


def adapter_tensors(
    rank: int, seed: int, modules: tuple[str, ...] = ("q_proj", "v_proj")
) -> dict[str, torch.Tensor]:
    """LoRA weights for the tiny model, large enough to change what it says."""
    generator = torch.Generator().manual_seed(seed)
    widths = {
        "q_proj": (HIDDEN, HIDDEN),
        "k_proj": (HIDDEN, HIDDEN // HEADS * KV_HEADS),
        "v_proj": (HIDDEN, HIDDEN // HEADS * KV_HEADS),
        "o_proj": (HIDDEN, HIDDEN),
        "gate_proj": (HIDDEN, FFN),
        "up_proj": (HIDDEN, FFN),
        "down_proj": (FFN, HIDDEN),
    }
    tensors = {}
    for layer in range(LAYERS):
        for module in modules:
            part = "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            prefix = f"base_model.model.model.layers.{layer}.{part}.{module}"
            width_in, width_out = widths[module]
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, width_in, generator=generator) * 0.2
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(width_out, rank, generator=generator) * 0.2
    return tensors


def adapter_config(
    rank: int, modules: tuple[str, ...] = ("q_proj", "v_proj"), **changes: object
) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": TINY_NAME,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(modules),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
        **changes,
    }


def write_adapter(
    directory: Path,
    rank: int = 4,
    seed: int = 0,
    modules: tuple[str, ...] = ("q_proj", "v_proj"),
    tensors: dict[str, torch.Tensor] | None = None,
    **changes: object,
) -> Path:
    """An adapter directory for the tiny model; `tensors` and `changes` (of the config) make it a bad one."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(adapter_config(rank, modules, **changes)))
    save_file(
        adapter_tensors(rank, seed, modules) if tensors is None else tensors,
        directory / "adapter_model.safetensors",
    )
    return directory
