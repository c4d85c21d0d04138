"""config.json and generation_config.json of a GGUF model, as transformers would have written them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from lorikeet_server.weights.error import WeightsError
from lorikeet_server.weights.gguf_header import GgufHeader

END_OF_TURN = ("<|eot_id|>", "<|im_end|>")


def model_config(header: GgufHeader, path: Path) -> dict[str, Any]:
    """The content of config.json. Raises WeightsError for what would give other numbers than the original
    model."""
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise WeightsError(
            f"model file {path} is of architecture {architecture}; GGUF is read for llama, use safetensors"
        )
    if metadata.get("split.count", 1) > 1:
        raise WeightsError(
            f"model file {path} is one of {metadata['split.count']} parts; merge them with gguf-split"
        )
    if _scales_positions(header):
        raise WeightsError(
            f"model file {path} scales its rotary positions; GGUF does not say exactly how, use safetensors"
        )
    if metadata.get("llama.expert_count", 0):
        raise WeightsError(f"model file {path} is a mixture of experts; use safetensors")

    if "token_embd.weight" not in header.tensors:
        raise WeightsError(f"model file {path} has no token_embd.weight; is it an adapter or a vocabulary?")

    def fact(key: str, default: float | None = None) -> Any:
        value = metadata.get(f"llama.{key}", default)
        if not isinstance(value, (int, float)) or value <= 0:
            raise WeightsError(f"model file {path} has no number llama.{key} that holds for all its layers")
        return value

    heads, hidden = fact("attention.head_count"), fact("embedding_length")
    head_dim = fact("attention.key_length", hidden // heads)
    if fact("rope.dimension_count", head_dim) != head_dim:
        raise WeightsError(f"model file {path} rotates only part of each head; use safetensors")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "attention_dropout": 0.0,
        **special_tokens(header),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": fact("feed_forward_length"),
        "max_position_embeddings": fact("context_length"),
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
        "num_attention_heads": heads,
        "num_hidden_layers": fact("block_count"),
        "num_key_value_heads": fact("attention.head_count_kv", heads),
        # Stored as fp32, whose nearest short decimal is what the original config said (9.9999997e-06 was
        # 1e-05).
        "rms_norm_eps": _shortest(fact("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(fact("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "torch_dtype": _dtype(header),
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
    }


def _scales_positions(header: GgufHeader) -> bool:
    metadata = header.metadata
    scaling = metadata.get("llama.rope.scaling.type")
    if scaling is None:
        # A factor alone scales linearly; older files have it under another name. 0 is none, as in llama.cpp.
        factors = (metadata.get(f"llama.rope.{key}", 0) for key in ("scaling.factor", "scale_linear"))
        scaling = "linear" if any(factor not in (0, 1) for factor in factors) else "none"
    return scaling != "none" or "rope_freqs.weight" in header.tensors


def generation_config(header: GgufHeader) -> dict[str, Any]:
    """The content of generation_config.json: where generation ends."""
    ids = special_tokens(header)
    ends = [ids["eos_token_id"], *_ends_of_turns(header), header.metadata.get("tokenizer.ggml.eom_token_id")]
    known = sorted({end for end in ends if end is not None})
    return {**ids, "eos_token_id": known[0] if len(known) == 1 else known or None}


def _ends_of_turns(header: GgufHeader) -> list[int]:
    """Files that were converted before there was a field for it have it by its name alone, those of Llama 3
    among them; llama.cpp finds it so too."""
    if (known := header.metadata.get("tokenizer.ggml.eot_token_id")) is not None:
        return [known]
    tokens = header.metadata.get("tokenizer.ggml.tokens", [])
    return [tokens.index(name) for name in END_OF_TURN if name in tokens]


def special_tokens(header: GgufHeader) -> dict[str, int | None]:
    """Token ids by their name in config.json; None where the model has no such token."""
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {name: header.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}


def matrix_kinds(header: GgufHeader) -> set[GGMLQuantizationType]:
    """The types in which the file holds its matrices; vectors are nearly always in float32."""
    return {tensor.quantization for tensor in header.tensors.values() if len(tensor.shape) > 1}


def _dtype(header: GgufHeader) -> str:
    """The smallest type that keeps what the matrices hold; quantised ones lose next to nothing in float16."""
    kinds = matrix_kinds(header)
    if GGMLQuantizationType.F32 in kinds:
        return "float32"
    return "bfloat16" if GGMLQuantizationType.BF16 in kinds else "float16"


def _shortest(value: float) -> float:
    return float(f"{value:.7g}")
