"""A whole stack of decoder layers as data, for backends that run a step without returning to Python per op.

The result equals calling the single ops in the order of `DecoderSpec`'s docstring. Only for one rank: tensor
parallelism needs its all-reduce between the ops.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lorikeet_server.kernels.attention_layer import AttentionLayer
from lorikeet_server.kernels.attention_plan import AttentionPlan
from lorikeet_server.kernels.lora_batch import LoraBatch
from lorikeet_server.kernels.lora_tables import LoraTable
from lorikeet_server.kernels.packed_linear import PackedLinear
from lorikeet_server.kernels.sequence_tables import SequenceTables


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Weights and attention of one layer. Without a LoRA table no adapter ever targets the module."""

    input_norm: Tensor  # f32 [hidden]
    qkv: PackedLinear  # hidden -> (H + 2K) * D
    o: PackedLinear  # H * D -> hidden
    post_norm: Tensor  # f32 [hidden]
    gate_up: PackedLinear  # hidden -> 2I, gate first
    down: PackedLinear  # I -> hidden
    attention: AttentionLayer
    qkv_bias: Tensor | None = None  # f32 [(H + 2K) * D], added after LoRA
    q_norm: Tensor | None = None  # f32 [D], RMS norm of every query head before the rotation
    k_norm: Tensor | None = None  # f32 [D]
    qkv_lora: LoraTable | None = None
    o_lora: LoraTable | None = None
    gate_up_lora: LoraTable | None = None
    down_lora: LoraTable | None = None


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Pre-norm decoder: norm, qkv (+LoRA, +bias, +head norms), rope, attention, o (+LoRA), add and norm,
    gate_up (+LoRA), silu_mul, down (+LoRA), add; after the last layer the final norm."""

    layers: tuple[DecoderLayer, ...]
    final_norm: Tensor  # f32 [hidden]
    eps: float


@dataclass(frozen=True, slots=True)
class StepTensors:
    """Where the rows of a step belong; shapes as in `Kernels.rope_and_cache`."""

    positions: Tensor
    slot_mapping: Tensor
    sequences: SequenceTables
    plan: AttentionPlan | None = None


class Decoder(Protocol):
    """The compiled stack. It keeps everything in its spec alive; LoRA slots may change between calls."""

    def __call__(self, hidden: Tensor, step: StepTensors, batch: LoraBatch | None) -> Tensor:
        """`hidden` f32 [T, hidden] (embedded tokens, overwritten) -> f32 [T, hidden] after the final norm."""
