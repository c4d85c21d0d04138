"""The computations of a step, behind one interface with interchangeable backends.

`ops` states the interface, `registry` picks a backend once: `cpu`, `cuda`, or `reference`, which is that
interface in plain torch. The `lora_*` modules hold what every LoRA product reads. Nothing here knows
models or adapters.
"""

from lorikeet_server.kernels.attention_layer import AttentionLayer
from lorikeet_server.kernels.attention_plan import AttentionPlan
from lorikeet_server.kernels.attention_shape import AttentionShape
from lorikeet_server.kernels.decoder import Decoder, DecoderLayer, DecoderSpec, StepTensors
from lorikeet_server.kernels.lora_adapter import LoraAdapter, LoraMatrices
from lorikeet_server.kernels.lora_batch import LoraBatch, LoraSegments
from lorikeet_server.kernels.lora_layout import PLAIN, LoraForm, LoraLayout, LoraModule
from lorikeet_server.kernels.lora_tables import LoraBatcher, LoraTable, LoraTables
from lorikeet_server.kernels.ops import Greedy, Kernels
from lorikeet_server.kernels.packed_linear import LinearMode, PackedLinear
from lorikeet_server.kernels.product import Product
from lorikeet_server.kernels.registry import select
from lorikeet_server.kernels.row_ops import ROWS_AT_A_TIME, Filters, Penalties
from lorikeet_server.kernels.sequence_tables import SequenceTables

__all__ = [
    "PLAIN",
    "ROWS_AT_A_TIME",
    "AttentionLayer",
    "AttentionPlan",
    "AttentionShape",
    "Decoder",
    "DecoderLayer",
    "DecoderSpec",
    "Filters",
    "Greedy",
    "Kernels",
    "LinearMode",
    "LoraAdapter",
    "LoraBatch",
    "LoraBatcher",
    "LoraForm",
    "LoraLayout",
    "LoraMatrices",
    "LoraModule",
    "LoraSegments",
    "LoraTable",
    "LoraTables",
    "PackedLinear",
    "Penalties",
    "Product",
    "SequenceTables",
    "StepTensors",
    "select",
]
