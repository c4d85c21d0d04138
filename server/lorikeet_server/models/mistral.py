"""Mistral 7B and relatives: Llama without biases, some with a sliding attention window."""

from dataclasses import replace
from typing import Any

from lorikeet_server.models.config import ModelConfig


def configure(raw: dict[str, Any]) -> ModelConfig:
    """Up to its window, sliding attention is full attention, so a window bounds the positions that are
    served."""
    config = ModelConfig.from_hf(raw)
    window = raw.get("sliding_window")
    return replace(config, max_positions=min(config.max_positions, int(window))) if window else config
