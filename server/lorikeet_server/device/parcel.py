"""What the host sends to a device for one step: one copy, into memory that stays where it is.

Everything that a step's kernels read and the host makes is put here before the first of them is called for:
positions, tables, the rows of adapters, the parameters of sampling. Equal things in equal order have equal
places, which is what captured work relies on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorikeet_server.device.base import Array

ALIGNMENT = 16  # bytes; kernels read vectors of as many
DEPTH = 2  # steps in flight
DTYPES = {np.dtype(str(dtype).removeprefix("torch.")): dtype for dtype in (
    torch.int32, torch.int64, torch.float32, torch.float64, torch.uint8
)}  # fmt: skip


@dataclass(slots=True)
class Part:
    """Memory of a device, and that of the host from which one copy fills it."""

    here: Tensor  # u8, pinned where the device is not the host
    there: Tensor  # u8, as long


class StepParcel:
    """See `base.Parcel`. The host's memory exists `DEPTH` times, since it must stay until it is copied."""

    def __init__(self, size: int, device: torch.device) -> None:
        """Room for `size` bytes. What goes beyond is sent too, by copies of its own."""
        self._pinned = device.type == "cuda"
        self._there = torch.zeros(size, dtype=torch.uint8, device=device)
        self._here = [self._host(size) for _ in range(DEPTH)]
        self._copied: list[torch.cuda.Event | None] = [None] * DEPTH
        self._beyond: list[Part] = []
        self._turn = self._end = 0
        self._open = False

    @property
    def place(self) -> int:
        return self._end

    def begin(self) -> None:
        self._turn = (self._turn + 1) % DEPTH
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()  # of the step before the last, which has been answered: this does not wait
        self._beyond.clear()
        self._end, self._open = 0, True

    def add(self, array: Array, room: int = 0) -> Tensor:
        if not self._open:
            raise RuntimeError("the parcel of this step has been sent")
        size = max(array.nbytes, room)
        part, start = self._take(-(-size // ALIGNMENT) * ALIGNMENT)
        here, there = (memory[start : start + array.nbytes] for memory in (part.here, part.there))
        here.numpy()[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return there.view(DTYPES[array.dtype]).view(array.shape)

    def send(self) -> None:
        self._open = False
        end = min(self._end, self._there.numel())
        self._there[:end].copy_(self._here[self._turn][:end], non_blocking=True)
        for part in self._beyond:
            part.there.copy_(part.here, non_blocking=True)
        if self._pinned:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._copied[self._turn] = event

    def _take(self, size: int) -> tuple[Part, int]:
        start = self._end
        if start + size > self._there.numel():
            part = Part(self._host(size), torch.empty(size, dtype=torch.uint8, device=self._there.device))
            self._beyond.append(part)
            return part, 0
        self._end += size
        return Part(self._here[self._turn], self._there), start

    def _host(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8, pin_memory=self._pinned)


class Singly:
    """See `base.Parcel`. Sends each thing by itself as it is added: for work beside the steps. On a host it
    is there already."""

    place = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin(self) -> None:
        """Nothing to do."""

    def add(self, array: Array, room: int = 0) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cpu":
            return tensor
        # Pinned, or the copy would wait; torch uses such memory again only once the copies from it are done.
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def send(self) -> None:
        """Nothing to do."""
