"""The host as its own device: every operation is an identity."""

from collections.abc import Callable

import torch

from lorikeet_server.device.base import Array, Event, Outputs, Upload
from lorikeet_server.device.memory import available_bytes


class HostDevice:
    """See `base.Device`."""

    where = torch.device("cpu")
    discrete = False

    def upload(self, *arrays: Array) -> tuple[torch.Tensor, ...]:
        return tuple(map(torch.from_numpy, arrays))

    def keep(self, *arrays: Array) -> Upload:
        return Upload(torch.empty(0, dtype=torch.uint8), tuple(torch.tensor(array) for array in arrays))

    def refill(self, upload: Upload, *arrays: Array) -> None:
        for tensor, array in zip(upload.tensors, arrays, strict=True):
            tensor.copy_(torch.from_numpy(array))

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def copy_beside(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event | None:
        target.copy_(source)
        return None

    def record(self) -> Event | None:
        return None

    def capture(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        outputs = work()

        def again() -> None:
            for kept, new in zip(outputs, work(), strict=True):
                kept.copy_(new)

        return again, outputs

    def available_bytes(self) -> int:
        return available_bytes()

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Not measured: what is allocated takes memory as it is touched."""
        work()
        return 0

    def synchronize(self) -> None:
        return None
