"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v, and a window in some layers where it is switched on."""

from typing import Any

from lorikeet_server.models.config import ModelConfig
from lorikeet_server.models.windows import some_windows


def configure(raw: dict[str, Any]) -> ModelConfig:
    """The bias is not a matter of the config."""
    return ModelConfig.from_hf(raw, some_windows, qkv_bias=True)
