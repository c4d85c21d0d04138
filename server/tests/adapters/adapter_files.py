"""Adapters as bytes: good ones to begin with, and the means to spoil them."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorikeet_server.adapters.library import AdapterLibrary, ServedModel
from lorikeet_server.adapters.staged import StagedAdapter
from lorikeet_server.adapters.store import Store
from lorikeet_server.adapters.targets import LoraTarget
from lorikeet_server.kernels import LoraMatrices, LoraModule

HIDDEN, KV, MLP, VOCAB, LAYERS = 32, 16, 48, 64, 3
SHAPES = {  # outputs, inputs
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
}
FUSED = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
ROW_PARALLEL = ("o_proj", "down_proj")
DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
}


def targets(rank: int = 0, world: int = 1) -> list[LoraTarget]:
    """Targets of the tiny Llama, as rank `rank` of `world` holds them."""
    result = []
    for layer in range(LAYERS):
        for module, (outputs, inputs) in SHAPES.items():
            split_in, split_out = (world, 1) if module.endswith(ROW_PARALLEL) else (1, world)
            result.append(
                LoraTarget(
                    f"model.layers.{layer}.{module}", inputs, outputs,
                    _part(inputs, rank % split_in, split_in), _part(outputs, rank % split_out, split_out),
                )
            )  # fmt: skip
    result.append(LoraTarget("lm_head", HIDDEN, VOCAB, range(HIDDEN), _part(VOCAB, rank, world)))
    return result


def modules() -> list[LoraModule]:
    """The fused linears that take these targets, on one rank."""
    shapes = {module.split(".")[1]: shape for module, shape in SHAPES.items()}
    fused = [LoraModule(shapes[leaves[0]][1], tuple(shapes[leaf][0] for leaf in leaves)) for leaves in FUSED]
    return [*fused * LAYERS, LoraModule(HIDDEN, (VOCAB,))]


def adapted(staged: StagedAdapter) -> int:
    """How many modules it changes."""
    return int((staged.matrices.entries["rank"] > 0).sum())


def matrices(staged: StagedAdapter) -> dict[str, LoraMatrices]:
    """What an adapter does to each module that it targets."""
    found = {target.name: staged.matrices.get(index) for index, target in enumerate(targets())}
    return {name: each for name, each in found.items() if each is not None}


def _part(size: int, index: int, parts: int) -> range:
    return range(size * index // parts, size * (index + 1) // parts)


def library(
    tmp_path: Path,
    *,
    roots: Sequence[Path] | None = None,
    disk_bytes: int = 0,
    dtype: torch.dtype = torch.float32,
    names: Sequence[str] = ("HuggingFaceTB/SmolLM2-135M-Instruct",),
    rank: int = 0,
    world: int = 1,
) -> AdapterLibrary:
    """A library over `tmp_path/root` and `tmp_path/store`."""
    (tmp_path / "root").mkdir(exist_ok=True)
    found = [str(root) for root in (roots or [tmp_path / "root"])]
    held = targets(rank=rank, world=world)
    model = ServedModel(names=names, targets=held, adapter_dtype=dtype, base_weights={})
    return AdapterLibrary(model, found, Store(str(tmp_path / "store"), disk_bytes))


def config(**changes: Any) -> dict[str, Any]:
    """A config like PEFT writes, for q_proj and v_proj at rank 4. A value of `...` removes the key."""
    base: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return {key: value for key, value in (base | changes).items() if value is not ...}


def tensors(leaves: Sequence[str] = ("q_proj", "v_proj"), rank: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Random A and B for these modules in every layer, by PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for layer in range(LAYERS):
        for module, (outputs, inputs) in SHAPES.items():
            if module.split(".")[1] in leaves:
                name = f"base_model.model.model.layers.{layer}.{module}"
                result[f"{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
                result[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator)
    return result


def raw_safetensors(header: bytes | Mapping[str, Any], data: bytes = b"") -> bytes:
    """A file with exactly this header and data, however wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors(values: Mapping[str, Tensor]) -> bytes:
    """A correct file."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in values.items():
        piece = value.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": names[value.dtype], "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(piece)],
        }  # fmt: skip
        data += piece
    return raw_safetensors(header, data)


def write(directory: Path, config_: Mapping[str, Any] | bytes | None, weights: bytes | None) -> Path:
    """An adapter directory; None leaves a file out."""
    directory.mkdir(parents=True, exist_ok=True)
    if config_ is not None:
        data = config_ if isinstance(config_, bytes) else json.dumps(config_, indent=2).encode()
        (directory / "adapter_config.json").write_bytes(data)
    if weights is not None:
        (directory / "adapter_model.safetensors").write_bytes(weights)
    return directory


def fetch(lib: AdapterLibrary, adapter_id: str, max_bytes: int = 0) -> str:
    """Fetch to the end; the digest."""
    return list(lib.fetch("local", adapter_id, max_bytes))[-1].digest
