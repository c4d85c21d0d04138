"""Gemma 2: norms around attention and MLP, soft caps on scores and logits, a window in every other layer."""

from dataclasses import replace
from typing import Any

from lorikeet_server.errors import ModelError
from lorikeet_server.models.config import ModelConfig
from lorikeet_server.models.windows import alternating_windows

# What transformers takes where config.json leaves it out, and `ModelConfig` has otherwise.
DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def configure(raw: dict[str, Any]) -> ModelConfig:
    """`hidden_activation` counts, whatever `hidden_act` says. A soft cap may be null: then there is none."""
    raw = DEFAULTS | raw
    if raw.get("use_bidirectional_attention"):
        raise ModelError("use_bidirectional_attention in config.json is not supported; attention is causal")
    raw["hidden_act"] = raw["hidden_activation"]
    bias = bool(raw.get("attention_bias", False))
    config = ModelConfig.from_hf(
        raw, alternating_windows, gelu=True, qkv_bias=bias, output_bias=bias, sandwich_norms=True
    )
    return replace(
        config,
        norm_offset=1.0,
        embedding_scale=config.hidden_size**0.5,
        attention_scale=_positive(raw, "query_pre_attn_scalar") ** -0.5,
        attention_cap=_cap(raw, "attn_logit_softcapping"),
        logit_cap=_cap(raw, "final_logit_softcapping"),
    )


def _cap(raw: dict[str, Any], name: str) -> float | None:
    return None if raw[name] is None else _positive(raw, name)


def _positive(raw: dict[str, Any], name: str) -> float:
    try:
        value = float(raw[name])
    except (TypeError, ValueError) as error:
        raise ModelError(f"{name} {raw[name]!r} in config.json is not a number") from error
    if not value > 0:
        raise ModelError(f"{name} {value} in config.json must be above 0")
    return value
