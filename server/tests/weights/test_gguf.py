"""GGUF files give the tensors and the configuration that the model had before it was converted."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lorikeet_server.config import Dtype
from lorikeet_server.service.load import storage_mode
from lorikeet_server.weights import ReportingSource, Slice, WeightsError, open_source
from lorikeet_server.weights.gguf_header import GgufHeader

QuantizationType = gguf.GGMLQuantizationType


def test_tensors_are_those_of_the_original_model(write_gguf: Any, tiny_model: LlamaForCausalLM) -> None:
    source = open_source(write_gguf())
    expected = tiny_model.state_dict()
    assert source.names() == sorted(expected)
    for name, tensor in expected.items():
        assert source.shape(name) == tuple(tensor.shape)
        torch.testing.assert_close(source.load(name), tensor, rtol=0, atol=0)


def test_biases_of_q_and_k_follow_their_rows(write_gguf: Any) -> None:
    """llama.cpp's converter reorders them as it does the weights."""
    bias = np.arange(64, dtype=np.float32)
    stored = bias.reshape(4, 2, 8).swapaxes(1, 2).reshape(64)
    source = open_source(write_gguf(extra={"blk.0.attn_q.bias": stored}))
    assert source.config["attention_bias"] is True
    assert torch.equal(source.load("model.layers.0.self_attn.q_proj.bias"), torch.from_numpy(bias))
    part = source.load("model.layers.0.self_attn.q_proj.bias", Slice(0, 16, 32))
    assert torch.equal(part, torch.arange(16.0, 32.0))


@pytest.mark.parametrize("quantization", [QuantizationType.F16, QuantizationType.BF16, QuantizationType.Q8_0])
def test_quantised_tensors_match_the_gguf_package(
    write_gguf: Any, tiny_model: LlamaForCausalLM, quantization: QuantizationType
) -> None:
    source = open_source(write_gguf(quantization=quantization))
    for name, tensor in tiny_model.state_dict().items():
        kind = quantization if tensor.ndim == 2 else QuantizationType.F32
        rounded = gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), kind), kind)
        torch.testing.assert_close(source.load(name), torch.from_numpy(rounded.reshape(tensor.shape)))


@pytest.mark.parametrize("quantization", [QuantizationType.F32, QuantizationType.Q8_0])
def test_slices_are_parts_of_the_whole(write_gguf: Any, quantization: QuantizationType) -> None:
    source = open_source(write_gguf(quantization=quantization))
    for name in source.names():
        whole = source.load(name)
        for dim in range(whole.ndim):
            part = Slice(dim, 3, whole.shape[dim] - 5)
            expected = whole.narrow(dim, 3, whole.shape[dim] - 8)
            loaded = source.load(name, part)
            assert loaded.is_contiguous()
            torch.testing.assert_close(loaded, expected, rtol=0, atol=0)


def test_config_is_that_of_the_original_model(write_gguf: Any, tiny_model: LlamaForCausalLM) -> None:
    config = LlamaConfig(**open_source(write_gguf()).config)
    original = tiny_model.config
    for field in (
        *(
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        ),
        *("vocab_size", "max_position_embeddings", "rms_norm_eps", "head_dim", "rope_parameters"),
        *("tie_word_embeddings", "eos_token_id"),
    ):
        assert getattr(config, field) == getattr(original, field), field


@pytest.mark.parametrize(
    ("quantization", "dtype", "quantised"),
    [
        (QuantizationType.F32, "float32", False),
        (QuantizationType.BF16, "bfloat16", False),
        (QuantizationType.F16, "float16", False),
        (QuantizationType.Q8_0, "float16", True),
        (QuantizationType.Q4_0, "float16", True),
    ],
)
def test_config_names_a_dtype_that_fits(
    write_gguf: Any, quantization: QuantizationType, dtype: str, quantised: bool
) -> None:
    source = ReportingSource(open_source(write_gguf(quantization=quantization)), lambda progress: None)
    assert (source.config["torch_dtype"], source.quantised) == (dtype, quantised)
    assert storage_mode(Dtype.AUTO, source) == dtype


def test_tied_embeddings_have_one_tensor(write_gguf: Any) -> None:
    source = open_source(write_gguf(tied=True))
    assert source.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in source.names()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "scales its rotary positions"),
        ({"llama.rope.scaling.factor": 4.0}, "scales its rotary positions"),
        ({"llama.rope.scale_linear": 2.0}, "scales its rotary positions"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"llama.block_count": None}, "no number llama.block_count"),
        ({"llama.attention.head_count_kv": [1, 2]}, "no number llama.attention.head_count_kv"),
        ({"llama.attention.head_count": 0}, "no number llama.attention.head_count"),
        ({"llama.rope.dimension_count": 8}, "rotates only part of each head"),
    ],
)
def test_what_would_give_other_numbers_is_refused(
    write_gguf: Any, metadata: dict[str, Any], reason: str
) -> None:
    path = write_gguf(metadata=metadata)
    with pytest.raises(WeightsError, match=reason) as caught:
        open_source(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_tensor_is_refused(write_gguf: Any) -> None:
    path = write_gguf(extra={"blk.0.ssm_in.weight": np.zeros((4, 32), np.float32)})
    with pytest.raises(WeightsError, match=r"blk\.0\.ssm_in\.weight"):
        open_source(path)


def test_rotary_factors_are_refused(write_gguf: Any) -> None:
    path = write_gguf(extra={"rope_freqs.weight": np.ones(8, np.float32)})
    with pytest.raises(WeightsError, match="rotary"):
        open_source(path)


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 200, 4000])
def test_a_cut_file_is_refused_in_one_line(write_gguf: Any, tmp_path: Path, keep: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(write_gguf().read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"cut\.gguf") as caught:
        open_source(cut)
    assert "\n" not in str(caught.value)


def test_a_file_that_lacks_its_last_bytes_is_refused(write_gguf: Any, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(write_gguf().read_bytes()[:-4096])
    with pytest.raises(WeightsError, match="runs past the end"):
        open_source(cut)


def test_damaged_headers_never_raise_anything_else(write_gguf: Any, tmp_path: Path) -> None:
    whole = bytearray(write_gguf().read_bytes())
    generator = np.random.default_rng(5)
    damaged = tmp_path / "damaged.gguf"
    for _ in range(300):
        content = bytearray(whole)
        for position in generator.integers(0, 6000, size=8):
            content[position] = int(generator.integers(256))
        damaged.write_bytes(content)
        try:
            open_source(damaged)
        except WeightsError as error:
            assert "\n" not in str(error)


def test_arrays_nested_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "nested.gguf"
    key = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IQ", 9, 1) * 5000)
    with pytest.raises(WeightsError, match="damaged or cut short"):
        open_source(path)


@pytest.mark.slow
def test_header_agrees_with_the_gguf_package(demo_gguf: Path) -> None:
    reader = gguf.GGUFReader(demo_gguf)
    header = GgufHeader.read(demo_gguf)
    for key, value in header.metadata.items():
        assert reader.fields[key].contents() == value, key
    assert header.length == reader.data_offset
    assert len(header.tensors) == len(reader.tensors)
    for tensor in reader.tensors:
        ours = header.tensors[tensor.name]
        assert ours.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert (ours.extent.begin, ours.extent.end) == (
            tensor.data_offset,
            tensor.data_offset + tensor.n_bytes,
        )
        assert ours.quantization == tensor.tensor_type


def test_demo_model_has_the_published_size(demo_gguf: Path) -> None:
    source = open_source(demo_gguf)
    assert sum(np.prod(source.shape(name)) for name in source.names()) == 134_515_008
    assert source.config["rope_theta"] == 100000.0
    assert source.config["rms_norm_eps"] == 1e-5
