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
from lorikeet_server.device.staging import Staging

ALIGNMENT = 16  # bytes; kernels read vectors of as many
DTYPES = {np.dtype(str(dtype).removeprefix("torch.")): dtype for dtype in (
    torch.int32, torch.int64, torch.float32, torch.float64, torch.uint8
)}  # fmt: skip


@dataclass(slots=True)
class Part:
    """Memory of a device, and that of the host from which one copy fills it."""

    here: Tensor  # u8, pinned where the device is not the host
    there: Tensor  # u8, as long


class StepParcel:
    """See `base.Parcel`."""

    def __init__(self, size: int, device: torch.device) -> None:
        """Room for `size` bytes. What goes beyond is sent too, by copies of its own."""
        self._there = torch.zeros(size, dtype=torch.uint8, device=device)
        self._staging = Staging(size, device)
        self._here = self._staging.take()
        self._beyond: list[Part] = []
        self._end, self._open = 0, False

    @property
    def offset(self) -> int:
        return self._end

    def begin(self) -> None:
        # Its last filling was for the step before the last, which has been answered: this does not wait.
        self._here = self._staging.take()
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
        self._staging.send(self._there, 0, self._end)
        for part in self._beyond:
            part.there.copy_(part.here, non_blocking=True)

    def _take(self, size: int) -> tuple[Part, int]:
        start = self._end
        if start + size > self._there.numel():
            # Of this host memory torch itself waits for the copy before it is used again.
            here = torch.empty(size, dtype=torch.uint8, pin_memory=self._there.is_cuda)
            self._beyond.append(Part(here, torch.empty(size, dtype=torch.uint8, device=self._there.device)))
            return self._beyond[-1], 0
        self._end += size
        return Part(self._here, self._there), start


class Singly:
    """See `base.Parcel`. Sends each thing by itself as it is added: for work beside the steps. On a host it
    is there already."""

    offset = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin(self) -> None:
        """Nothing to do."""

    def add(self, array: Array, room: int = 0) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if room > array.nbytes:
            memory = torch.zeros(room, dtype=torch.uint8)
            memory[: array.nbytes] = tensor.flatten().view(torch.uint8)
            return self._sent(memory)[: array.nbytes].view(tensor.dtype).view(tensor.shape)
        return self._sent(tensor)

    def send(self) -> None:
        """Nothing to do."""

    def _sent(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return tensor
        # Pinned, or the copy would wait; torch uses such memory again only once the copies from it are done.
        return tensor.pin_memory().to(self._device, non_blocking=True)
