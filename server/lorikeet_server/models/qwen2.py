"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v."""

from dataclasses import replace
from typing import Any

from lorikeet_server.models.config import ModelConfig


def configure(raw: dict[str, Any]) -> ModelConfig:
    """Where the sliding window is switched on it bounds the positions that are served (see `mistral`)."""
    config = ModelConfig.from_hf(raw, qkv_bias=True)
    if not raw.get("use_sliding_window"):
        return config
    return replace(config, max_positions=min(config.max_positions, int(raw.get("sliding_window") or 4096)))
