"""The part of the interface that is nothing to do where kernels read what the host writes, and what torch
does well enough."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lorikeet_server.device.base import Parcel
from lorikeet_server.kernels.attention_plan import AttentionPlan
from lorikeet_server.kernels.attention_shape import AttentionShape
from lorikeet_server.kernels.lora_batch import LoraBatch
from lorikeet_server.kernels.lora_tables import LoraTable
from lorikeet_server.kernels.packed_linear import PackedLinear
from lorikeet_server.kernels.product import Product
from lorikeet_server.kernels.sequence_tables import SequenceTables


class HostOps:
    """See `ops.Kernels`. Activations are float32, tables are read where they are, and no work is captured."""

    device = torch.device("cpu")
    dtype = torch.float32
    own_threads = True

    def captures(self, shapes: Sequence[AttentionShape]) -> bool:
        return False

    def reserve(self, shapes: Sequence[AttentionShape], sequences: int) -> None:
        return None

    def pack_vector(self, values: Tensor) -> Tensor:
        return values.float()

    def adapted_linear(
        self, x: Tensor, packed: PackedLinear, table: LoraTable, batch: LoraBatch
    ) -> Product | None:
        return None

    def gelu_mul(self, gate_up: Product) -> Tensor:
        gate, up = gate_up.whole().chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh").mul_(up)

    def spare_place(self, num_blocks: int, block_size: int) -> int:
        return -1  # the kernels skip it

    def plan(
        self,
        sequences: SequenceTables,
        shapes: Sequence[AttentionShape],
        block_size: int,
        parcel: Parcel,
        *,
        fixed: bool = False,
    ) -> AttentionPlan | None:
        return None
