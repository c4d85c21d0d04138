"""The ranks that compute one model together, and the three collectives they need.

Every rank receives the same steps from the router, so nothing about scheduling is exchanged here. With one
rank all of this is the identity and touches no process group.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

# Far above the longest step. A rank that waits longer has lost its peers for good, and the group is
# restarted.
COLLECTIVE_TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """This process's place in its group."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is outside a group of {self.size}")

    def share(self, total: int) -> range:
        """This rank's range of `total` units; all ranks take equally many but for the last, which may have
        fewer."""
        width = -(-total // self.size)
        return range(min(self.rank * width, total), min((self.rank + 1) * width, total))

    def all_reduce(self, x: torch.Tensor) -> None:
        """Sums `x` over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x)

    def gather_columns(self, x: torch.Tensor, total: int) -> torch.Tensor:
        """Joins each rank's columns `[rows, len(share(total))]` to `[rows, total]`, on every rank."""
        if self.size == 1:
            return x
        width = -(-total // self.size)
        # Collectives want equal shapes; the last rank's share may be narrower.
        mine = x if x.shape[1] == width else torch.nn.functional.pad(x, (0, width - x.shape[1]))
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts, dim=1)[:, :total]

    def agree(self, x: torch.Tensor) -> None:
        """Replaces `x` by rank 0's, in place.

        Gathered logits are equal on all ranks, but a library that sums in another order on one of them would
        make the ranks feed different tokens to the next step, and nothing downstream would notice.
        """
        if self.size > 1:
            dist.broadcast(x, src=0)


def connect(rank: int, size: int, address: str, port: int, device: torch.device) -> TensorParallel:
    """Joins the group at `address:port`; returns at once for a group of one. Waits for all ranks."""
    if size > 1:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{address}:{port}",
            rank=rank,
            world_size=size,
            timeout=COLLECTIVE_TIMEOUT,
        )
    return TensorParallel(rank, size)
