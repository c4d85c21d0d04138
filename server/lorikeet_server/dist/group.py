"""The ranks that compute one model together, and the three collectives they need.

Every rank receives the same steps from the router, so nothing about scheduling is exchanged here. With one
rank all of this is the identity and touches no process group.
"""

import socket
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from lorikeet_server.dist.bond import Bond

# Far above the longest step. Ranks tell each other when they leave (`bond`); this is for one that hangs.
COLLECTIVE_TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """This process's place in its group."""

    rank: int = 0
    size: int = 1
    bond: Bond | None = field(default=None, compare=False)

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


def connect(rank: int, size: int, address: str, port: int, device: torch.device) -> TensorParallel:
    """Joins the group at `address:port`; returns at once for a group of one. Waits for all ranks.

    Nothing listens on other interfaces than the one of `address`: the protocol between ranks has no
    authentication.
    """
    if size == 1:
        return TensorParallel()
    store = _store(rank, size, address, port)
    tp = TensorParallel(rank, size, Bond(rank, lambda: _client(size, address, port)))
    if device.type == "cuda":
        timeout = COLLECTIVE_TIMEOUT
        dist.init_process_group(
            "nccl", store=store, rank=rank, world_size=size, timeout=timeout, device_id=device
        )
        return tp
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=own_address(address, port))]
    options._timeout = COLLECTIVE_TIMEOUT
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, pg_options=options)
    return tp


def _store(rank: int, size: int, address: str, port: int) -> TCPStore:
    """Where the ranks meet. Rank 0 binds the socket itself, since TCPStore would bind it to every
    interface."""
    if rank > 0:
        return _client(size, address, port)
    family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.create_server((address, port), family=family)
    return TCPStore(
        address,
        port,
        size,
        is_master=True,
        timeout=COLLECTIVE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
        use_libuv=True,
    )


def _client(size: int, address: str, port: int) -> TCPStore:
    return TCPStore(address, port, size, is_master=False, timeout=COLLECTIVE_TIMEOUT)


def own_address(address: str, port: int) -> str:
    """The address of this machine on the way to `address`."""
    family = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port))  # a datagram socket: sends nothing
        return str(probe.getsockname()[0])
