"""Mistral 7B and relatives: Llama without biases, some with a sliding attention window."""

from typing import Any

from lorikeet_server.models.config import ModelConfig
from lorikeet_server.models.windows import one_window


def configure(raw: dict[str, Any]) -> ModelConfig:
    """The window holds in every layer."""
    return ModelConfig.from_hf(raw, one_window)
