"""Qwen3 (dense): Llama with an RMS norm on every query and key head, and Qwen2's windows."""

from typing import Any

from lorikeet_server.models.config import ModelConfig
from lorikeet_server.models.windows import some_windows


def configure(raw: dict[str, Any]) -> ModelConfig:
    """`attention_bias` puts a bias on q, k, v and o."""
    bias = bool(raw.get("attention_bias", False))
    return ModelConfig.from_hf(raw, some_windows, head_norms=True, qkv_bias=bias, output_bias=bias)
