"""Stand-ins for a GPU: work that is called for and done later, and work that is captured."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from tape import Tape
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorikeet_server.device.base import Array, Event, Outputs
from lorikeet_server.device.host import HostDevice
from lorikeet_server.device.parcel import StepParcel
from lorikeet_server.errors import DeviceError

# What makes a host wait for a device: reading a number, or a shape that depends on numbers.
WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select", "aten::equal"}


def waits(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation waits; a mask as an index has as many elements as it has true ones."""
    masks = [
        each for each in tree_leaves(args[1:2]) if isinstance(each, torch.Tensor) and each.dtype == torch.bool
    ]
    return name in WAITS or (name == "aten::index" and bool(masks))


class Recorder(TorchDispatchMode):
    """Puts the operations of some work on a tape."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        assert not waits(name, args), f"{name} waits for the device"
        out = func(*args, **(kwargs or {}))
        self._tape.record(lambda: func(*args, **(kwargs or {})), out)
        return out


class CountingParcel(StepParcel):
    """With memory of its own, as on a device. Counts the copies by which it is filled."""

    def __init__(self, size: int) -> None:
        super().__init__(size, torch.device("cpu"))
        self.copies = 0

    def send(self) -> None:
        self.copies += 1 + len(self._beyond)
        super().send()


class RerunDevice(HostDevice):
    """Runs again what it was to capture. Counts copies to it."""

    def __init__(self) -> None:
        super().__init__()
        self.parcels: list[CountingParcel] = []
        self.uploads = 0

    @property
    def copies(self) -> int:
        return self.uploads + sum(parcel.copies for parcel in self.parcels)

    def parcel(self, size: int) -> CountingParcel:
        self.parcels.append(CountingParcel(size))
        return self.parcels[-1]

    def upload(self, *arrays: Array) -> tuple[torch.Tensor, ...]:
        self.uploads += len(arrays)
        return super().upload(*arrays)

    def capture(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        outputs = work()

        def again() -> None:
            for kept, new in zip(outputs, work(), strict=True):
                kept.copy_(new)

        return again, outputs


class CapturingDevice(RerunDevice):
    """Captures on a tape, and counts how often tapes are played."""

    def __init__(self) -> None:
        super().__init__()
        self.captures = self.replays = 0

    def capture(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        self.captures += 1
        work()
        tape = Tape()
        with Recorder(tape):
            outputs = work()

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay, outputs


class Later:
    """An event that the test lets happen. `then` is done as it does."""

    def __init__(self, gate: threading.Event, then: Callable[[], object] = lambda: None) -> None:
        self._gate, self._then, self._done, self._lock = gate, then, False, threading.Lock()
        self.joined = False

    def wait(self) -> None:
        assert self._gate.wait(20), "nobody let the event happen"
        self._finish()

    def reached(self) -> bool:
        if self._gate.is_set():
            self._finish()
        return self._done

    def join(self) -> None:
        self.joined = True
        self._finish()

    def _finish(self) -> None:
        with self._lock:
            if not self._done:
                self._then()
            self._done = True


class LateDevice(HostDevice):
    """Steps are computed at once and said to be done when `steps` is set; copies from the host begin when
    `copies` is set, or when a step joins them."""

    discrete = True

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.copies = threading.Event(), threading.Event()
        self.steps.set()
        self.copies.set()
        self.failure: DeviceError | None = None
        self.beside: list[tuple[Later, Event | None]] = []

    def record(self) -> Event | None:
        return Later(self.steps, self._fail)

    def copy_beside(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event | None:
        before = self.beside[-1][0].join if self.beside else lambda: None
        event = Later(self.copies, lambda: (before(), target.copy_(source)))
        self.beside.append((event, after))
        return event

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure
