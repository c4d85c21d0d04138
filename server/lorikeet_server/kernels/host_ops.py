"""The part of the interface that is nothing to do where kernels read what the host writes."""

import torch
from torch import Tensor

from lorikeet_server.kernels.ops import AttentionPlan, AttentionShape


class HostOps:
    """See `ops.Kernels`. Activations are float32, tables are read where they are, and no work is captured."""

    device = torch.device("cpu")
    dtype = torch.float32

    def captures(self, shape: AttentionShape) -> bool:
        return False

    def pack_vector(self, values: Tensor) -> Tensor:
        return values.float()

    def spare_place(self, num_blocks: int, block_size: int) -> int:
        return -1  # the kernels skip it

    def plan(
        self,
        block_tables: Tensor,
        query_start: Tensor,
        context_len: Tensor,
        shape: AttentionShape,
        block_size: int,
        *,
        fixed: bool = False,
    ) -> AttentionPlan | None:
        return None
