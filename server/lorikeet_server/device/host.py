"""The host as its own device: every operation is an identity."""

from collections.abc import Callable

import torch

from lorikeet_server.device.base import Array, Event, Outputs, Parcel
from lorikeet_server.device.memory import available_bytes
from lorikeet_server.device.parcel import Singly


class HostDevice:
    """See `base.Device`."""

    where = torch.device("cpu")
    discrete = False

    def __init__(self, ranks: int = 1) -> None:
        """`ranks`: how many processes of a group take of this host's memory, at the same time."""
        self._ranks = ranks

    def parcel(self, size: int) -> Parcel:
        return Singly(self.where)

    def upload(self, *arrays: Array) -> tuple[torch.Tensor, ...]:
        return tuple(map(torch.from_numpy, arrays))

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def copy_beside(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event | None:
        target.copy_(source)
        return None

    def record(self) -> Event | None:
        return None

    def capture(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        raise RuntimeError("work is not captured on a host, whose kernels read what the host writes")

    def available_bytes(self) -> int:
        return available_bytes() // self._ranks

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Not measured: what is allocated takes memory as it is touched."""
        work()
        return 0

    def synchronize(self) -> None:
        return None
