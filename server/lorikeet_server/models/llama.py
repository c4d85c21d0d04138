"""Llama 1 to 3.x and its many descendants (SmolLM2, TinyLlama, Yi, ...)."""

from typing import Any

from lorikeet_server.models.config import ModelConfig


def configure(raw: dict[str, Any]) -> ModelConfig:
    """`attention_bias` puts a bias on q, k, v and o; `mlp_bias` on gate, up and down."""
    bias = bool(raw.get("attention_bias", False))
    return ModelConfig.from_hf(
        raw, qkv_bias=bias, output_bias=bias, mlp_bias=bool(raw.get("mlp_bias", False))
    )
