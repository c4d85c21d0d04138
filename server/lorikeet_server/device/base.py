"""The interface of a device to the engine."""

from collections.abc import Callable
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


class Parcel(Protocol):
    """What the host sends to a device for one step."""

    @property
    def offset(self) -> int:
        """Bytes that have been added since `begin`. At equal offsets, what is added next comes to equal
        addresses."""

    def begin(self) -> None:
        """Empties it, for the next step."""

    def add(self, array: Array, room: int = 0) -> torch.Tensor:
        """Where `array` will be on the device once the parcel has been sent, until the next is. It keeps
        `room` bytes there if they are more than the array's."""

    def send(self) -> None:
        """Starts the copy, in the order of work. Nothing may be added afterwards."""


class Device(Protocol):
    """Work is done in the order in which it is called for. Only `wait` and `synchronize` wait for it."""

    @property
    def where(self) -> torch.device:
        """Where tensors are."""

    @property
    def discrete(self) -> bool:
        """Whether it has memory of its own, and works while the host goes on."""

    def parcel(self, size: int) -> Parcel:
        """For steps that send at most about `size` bytes."""

    def upload(self, *arrays: Array) -> tuple[torch.Tensor, ...]:
        """Arrays as tensors of their own, for what is not sent with every step."""

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
