"""The table of adapter directories that must be refused, with what each refusal names."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from support import bad_adapters as bad
from support.models import adapter_config, adapter_tensors, write_adapter


@dataclass(frozen=True)
class Bad:
    """An adapter that is refused with one of `statuses`, by an error that contains `phrase` (in any case)."""

    name: str
    make: Callable[[Path], object]
    phrase: str
    statuses: tuple[int, ...] = (422,)


NAN = torch.full((4, 64), float("nan"))
INT8 = torch.zeros(4, 64, dtype=torch.int8)
INF = torch.zeros(4, 64).index_fill(1, torch.tensor([3]), float("inf"))

# A tensor without elements, as a header has it.
NOTHING = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

CORPUS: list[Bad] = [
    Bad("missing", lambda d: None, "adapter", (404,)),
    Bad("empty", lambda d: d.mkdir(), "adapter_config.json", (404, 422)),
    Bad("no-config", lambda d: bad.without(d, "adapter_config.json"), "adapter_config.json", (404, 422)),
    Bad(
        "no-weights",
        lambda d: bad.without(d, "adapter_model.safetensors"),
        "adapter_model.safetensors",
        (404, 422),
    ),
    Bad("config-not-json", lambda d: bad.config(d, "{r: 4"), "json"),
    Bad("config-a-list", lambda d: bad.config(d, "[]"), "object"),
    Bad("config-1gb", bad.sparse_config, "adapter_config.json", (413, 422)),
    Bad("config-utf16", lambda d: bad.config(d, json.dumps(adapter_config(4)).encode("utf-16")), "utf-8"),
    Bad("config-bom", lambda d: bad.config(d, "\ufeff" + json.dumps(adapter_config(4))), "json"),
    Bad("config-dup-keys", lambda d: bad.config(d, '{"r": 4, "r": 8}'), "twice"),
    Bad("config-nan-alpha", lambda d: write_adapter(d, lora_alpha=float("nan")), "nan"),
    Bad("truncated", lambda d: bad.weights(d, bad.good()[:-7]), "adapter_model.safetensors"),
    Bad("empty-weights", lambda d: bad.weights(d, b""), "adapter_model.safetensors"),
    Bad("trailing", lambda d: bad.weights(d, bad.good() + b"\0" * 8), "adapter_model.safetensors"),
    Bad("header-huge", lambda d: bad.weights(d, struct.pack("<Q", 1 << 40) + b"{}"), "header"),
    Bad("header-not-json", lambda d: bad.weights(d, bad.header(b"not json")), "header"),
    Bad(
        "header-dup",
        lambda d: bad.weights(
            d,
            bad.header(
                b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
                b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
            ),
        ),
        "twice",
    ),
    Bad(
        "header-many",
        lambda d: bad.weights(
            d,
            bad.header({f"t{i}": NOTHING for i in range(30_000)}),
        ),
        "tensors",
    ),
    Bad(
        "header-name",
        lambda d: bad.weights(d, bad.header({"../x": NOTHING})),
        "name",
    ),
    Bad(
        "header-hole",
        lambda d: bad.weights(
            d, bad.header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8)
        ),
        "a",
    ),
    Bad(
        "wrong-base",
        lambda d: write_adapter(d, base_model_name_or_path="meta-llama/Llama-3.1-8B-Instruct"),
        "llama-3.1-8b",
    ),
    Bad("wrong-shape-a", lambda d: bad.tensors(d, q_proj__lora_A__weight=torch.zeros(4, 63)), "q_proj"),
    Bad("wrong-shape-b", lambda d: bad.tensors(d, v_proj__lora_B__weight=torch.zeros(33, 4)), "v_proj"),
    Bad("rank-mismatch", lambda d: write_adapter(d, rank=8, tensors=adapter_tensors(4, 0)), "rank"),
    Bad("rank-zero", lambda d: write_adapter(d, r=0), "r"),
    Bad("rank-negative", lambda d: write_adapter(d, r=-1), "r"),
    Bad("rank-65536", lambda d: write_adapter(d, r=65536), "r"),
    Bad("rank-text", lambda d: write_adapter(d, r="8"), "r"),
    Bad(
        "a-without-b",
        lambda d: write_adapter(d, tensors={k: v for k, v in adapter_tensors(4, 0).items() if "lora_A" in k}),
        "lora_B",
    ),
    Bad("no-tensors", lambda d: write_adapter(d, tensors={}), "adapter"),
    Bad(
        "no-module",
        lambda d: write_adapter(
            d,
            target_modules=["c_attn"],
            tensors={
                "base_model.model.h.0.c_attn.lora_A.weight": torch.zeros(4, 64),
                "base_model.model.h.0.c_attn.lora_B.weight": torch.zeros(64, 4),
            },
        ),
        "c_attn",
    ),
    Bad(
        "layer-beyond",
        lambda d: write_adapter(
            d,
            tensors=adapter_tensors(4, 0)
            | {"base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight": torch.zeros(4, 64)},
        ),
        "layers.99",
    ),
    Bad("nan", lambda d: bad.tensors(d, q_proj__lora_A__weight=NAN), "q_proj"),
    Bad("inf", lambda d: bad.tensors(d, q_proj__lora_A__weight=INF), "q_proj"),
    Bad(
        "int8",
        lambda d: bad.tensors(d, q_proj__lora_A__weight=torch.zeros(4, 64, dtype=torch.int8)),
        "q_proj",
    ),
    Bad("dora", lambda d: write_adapter(d, use_dora=True), "use_dora"),
    Bad("bias", lambda d: write_adapter(d, bias="all"), "bias"),
    Bad("modules-to-save", lambda d: write_adapter(d, modules_to_save=["lm_head"]), "modules_to_save"),
    Bad("ia3", lambda d: write_adapter(d, peft_type="IA3"), "peft_type"),
    Bad("fan-in-fan-out", lambda d: write_adapter(d, fan_in_fan_out=True), "fan_in_fan_out"),
    Bad("unknown-option", lambda d: write_adapter(d, use_magic=True), "use_magic"),
]
