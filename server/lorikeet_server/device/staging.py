"""Pinned host memory that a device copies from, refilled while earlier copies are still on their way."""

import torch
from torch import Tensor

DEPTH = 2  # fillings on their way at once: those of the steps in flight


class Staging:
    """Buffers of one size, used in turn. On a CPU there is one, and copies are done when they return."""

    def __init__(self, size: int, device: torch.device) -> None:
        """`size` bytes, to be copied to `device`."""
        self._on_device = device.type == "cuda"
        count = DEPTH if self._on_device else 1
        self._buffers = [
            torch.zeros(size, dtype=torch.uint8, pin_memory=self._on_device) for _ in range(count)
        ]
        self._copied = [torch.cuda.Event() for _ in range(count)] if self._on_device else []  # type: ignore[no-untyped-call]
        self._turn = 0

    def take(self) -> Tensor:
        """A buffer to fill. Waits only if its last filling, `DEPTH` ago, has not been copied yet."""
        self._turn = (self._turn + 1) % len(self._buffers)
        if self._on_device:
            self._copied[self._turn].synchronize()
        return self._buffers[self._turn]

    def send(self, target: Tensor, start: int, end: int) -> None:
        """Copy bytes `start` to `end` of the buffer that was taken last to the same place of `target` u8, in
        the order of the current stream."""
        target[start:end].copy_(self._buffers[self._turn][start:end], non_blocking=True)
        if self._on_device:
            self._copied[self._turn].record()
