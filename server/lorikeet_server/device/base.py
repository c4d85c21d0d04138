"""The interface of a device to the engine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Outputs = tuple[torch.Tensor, ...]


class Event(Protocol):
    """A point in the device's order of work."""

    def wait(self) -> None:
        """Blocks until the device has come this far. Raises DeviceError if it never will."""

    def reached(self) -> bool:
        """Whether the device has come this far."""

    def join(self) -> None:
        """Work called for from now on starts after it."""


@dataclass(frozen=True, slots=True)
class Upload:
    """Host arrays on the device, in one allocation that may be filled again."""

    memory: torch.Tensor  # bytes
    tensors: tuple[torch.Tensor, ...]


class Device(Protocol):
    """Work is done in the order in which it is called for. Only `wait` and `synchronize` wait for it."""

    @property
    def where(self) -> torch.device:
        """Where tensors are."""

    @property
    def discrete(self) -> bool:
        """Whether it has memory of its own, and works while the host goes on."""

    def upload(self, *arrays: Array) -> tuple[torch.Tensor, ...]:
        """Contiguous arrays as tensors of their own, moved as one copy."""

    def keep(self, *arrays: Array) -> Upload:
        """The same in memory that `refill` fills again: captured work finds it at the same address."""

    def refill(self, upload: Upload, *arrays: Array) -> None:
        """Overwrites what was kept, with arrays of the same shapes and dtypes, in the order of work."""

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in host memory, complete once an event recorded after it is reached."""

    def copy_beside(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event | None:
        """Copies from pinned host memory once `after` is reached, out of the order of work and beside it.
        Returns when it is done (None: now). The caller keeps both tensors until then."""

    def record(self) -> Event | None:
        """An event after all work called for so far; None if everything is done already."""

    def capture(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Runs `work` and returns how to run it again, and the tensors in which it leaves its results.

        Running it again repeats the device's part only: what `work` reads on the host is as it was now.
        """

    def available_bytes(self) -> int:
        """Memory that can still be taken."""

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Runs `work`; the most memory that it held beyond what was held before."""

    def synchronize(self) -> None:
        """Blocks until all work is done. Raises DeviceError if the device has failed."""
