"""The computations of a step, behind one interface with interchangeable backends.

`ops` states the interface, `registry` picks a backend once, `reference` is that interface in plain torch, and
`lora_table`/`lora_batch` hold what every backend's LoRA product reads. Nothing here knows models or adapters.
"""

from lorikeet_server.kernels.decoder import Decoder, DecoderLayer, DecoderSpec, StepTensors
from lorikeet_server.kernels.lora_batch import LoraBatch
from lorikeet_server.kernels.lora_table import LoraTable, rank_major
from lorikeet_server.kernels.ops import (
    AttentionPlan,
    AttentionShape,
    Greedy,
    Kernels,
    LinearMode,
    PackedLinear,
)
from lorikeet_server.kernels.registry import select

__all__ = [
    "AttentionPlan",
    "AttentionShape",
    "Decoder",
    "DecoderLayer",
    "DecoderSpec",
    "Greedy",
    "Kernels",
    "LinearMode",
    "LoraBatch",
    "LoraTable",
    "PackedLinear",
    "StepTensors",
    "rank_major",
    "select",
]
