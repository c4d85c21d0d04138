"""Qwen3 (dense): Llama with an RMS norm on every query and key head."""

from dataclasses import replace
from typing import Any

from lorikeet_server.models.config import ModelConfig


def configure(raw: dict[str, Any]) -> ModelConfig:
    """Where the sliding window is switched on it bounds the positions that are served (see `mistral`)."""
    bias = bool(raw.get("attention_bias", False))
    config = ModelConfig.from_hf(raw, head_norms=True, qkv_bias=bias, output_bias=bias)
    if not raw.get("use_sliding_window"):
        return config
    return replace(config, max_positions=min(config.max_positions, int(raw.get("sliding_window") or 4096)))
