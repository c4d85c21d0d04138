"""The ranks that compute one model together, and the three collectives they need.

Every rank receives the same steps from the router, so nothing about scheduling is exchanged here. With one
rank all of this is the identity and touches no process group.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from loguru import logger

from lorikeet_server.config import GroupConfig
from lorikeet_server.dist.bond import Bond
from lorikeet_server.dist.meeting import Directory, connect_to_store, directory, exchange, join, own_address
from lorikeet_server.errors import GroupError

# Far above the longest step. Ranks tell each other when they leave (`bond`); this is for one that hangs.
COLLECTIVE_TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """This process's place in its group."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of its machine
    bond: Bond | None = field(default=None, compare=False)
    directory: Directory = field(default=Directory(), compare=False)

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
        """Joins each rank's columns `[rows, len(share(total))]` to `[rows, total]`, contiguous, on every
        rank."""
        if self.size == 1:
            return x
        width = -(-total // self.size)
        # Collectives want equal shapes; the last rank's share may be narrower.
        mine = x if x.shape[1] == width else torch.nn.functional.pad(x, (0, width - x.shape[1]))
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts, dim=1)[:, :total].contiguous()

    def agree(self, x: torch.Tensor) -> None:
        """Replaces `x` by rank 0's, in place.

        Gathered logits are equal on all ranks, but a library that sums in another order on one of them would
        make the ranks feed different tokens to the next step, and nothing downstream would notice.
        """
        if self.size > 1:
            dist.broadcast(x, src=0)


def connect(
    group: GroupConfig, device: torch.device, broken: Callable[[], object], endpoint: str = ""
) -> TensorParallel:
    """Joins the group; returns at once for a group of one. Waits for all ranks, and calls `broken`, on
    another thread, as soon as one of them is lost. `endpoint`: where a router reaches this rank, if not
    through its Unix socket. Raises GroupError if the ranks do not meet, ConfigError if they never will.

    Nothing listens on other interfaces than the one of the group's address: the protocol between ranks has
    no authentication.
    """
    if group.world_size == 1:
        return TensorParallel()
    if group.rank == 0:
        logger.info("waiting for {} ranks at {}:{}", group.world_size, group.address, group.port)
    try:
        return _meet(group, device, broken, endpoint)
    except (OSError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise GroupError(
            f"rank {group.rank} of {group.world_size} has not met the others at {group.address}:{group.port} "
            f"(--master-addr, --master-port): {reason}"
        ) from error


def _meet(
    group: GroupConfig, device: torch.device, broken: Callable[[], object], endpoint: str
) -> TensorParallel:
    store = join(group, device.type, COLLECTIVE_TIMEOUT)
    exchange(store, group, endpoint)
    bond = Bond(group.rank, lambda: connect_to_store(group, COLLECTIVE_TIMEOUT))
    bond.watch(broken)
    rank, size = group.rank, group.world_size
    if device.type == "cuda":
        timeout = COLLECTIVE_TIMEOUT
        dist.init_process_group(
            "nccl", store=store, rank=rank, world_size=size, timeout=timeout, device_id=device
        )
    else:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        hostname = own_address(group.address, group.port)
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=hostname)]
        options._timeout = COLLECTIVE_TIMEOUT
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, pg_options=options)
    return TensorParallel(rank, size, group.local_rank, bond, directory(store, group))
