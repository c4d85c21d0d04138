"""Where the bytes of an adapter are while it is in a slot: on the host where they were staged, on a GPU in
one pool of exactly the budget's size."""

from typing import NamedTuple, Protocol

import torch

from lorikeet_server.adapters.regions import Regions, Shift
from lorikeet_server.adapters.staged import StagedAdapter
from lorikeet_server.device.base import Device, Event

# A region that moves onto itself goes through a buffer of this size.
BOUNCE_BYTES = 16 << 20


class Placed(NamedTuple):
    """An adapter where the kernels can read it, once `done` is reached (None: now)."""

    adapter: StagedAdapter
    done: Event | None


class AdapterMemory(Protocol):
    """The memory of all slots."""

    def place(self, slot: int, staged: StagedAdapter) -> dict[int, Placed]:
        """Starts bringing an adapter to where an empty slot reads it. Returns that slot's placement, and
        those of other slots that had to move. Raises `MemoryError` if there is no room."""

    def release(self, slot: int) -> None:
        """The slot's memory may be used again once the steps called for so far are done."""


class HostMemory:
    """Kernels on the host read adapters where they were staged."""

    def place(self, slot: int, staged: StagedAdapter) -> dict[int, Placed]:
        return {slot: Placed(staged, None)}

    def release(self, slot: int) -> None:
        return None


class DevicePool:
    """One allocation on a device. Copies from the host run beside the steps, on a queue of their own."""

    def __init__(self, device: Device, size: int) -> None:
        self._device, self._regions = device, Regions(size)
        self._memory = torch.empty(size, dtype=torch.uint8, device=device.where)
        self._placed: dict[int, Placed] = {}
        self._bounce = torch.empty(min(BOUNCE_BYTES, size), dtype=torch.uint8, device=device.where)
        self._released: Event | None = None
        self._copied: Event | None = None  # the last copy called for; they are done in order

    def place(self, slot: int, staged: StagedAdapter) -> dict[int, Placed]:
        size, regions = staged.memory_bytes, self._regions
        if size > regions.free:
            raise MemoryError(
                f"it needs {size} bytes and {regions.free} of {regions.size} are free; "
                "--adapter-memory-bytes sets how many there are"
            )
        moved: dict[int, Placed] = {}
        at = regions.take(slot, size)
        if at is None:
            moved = self._compact()
            at = regions.take(slot, size)
            assert at is not None
        target = self._memory[at : at + size]
        # What last lay there may still be read by a step that runs.
        done = self._device.copy_beside(target, staged.matrices.memory, self._released)
        self._copied = done
        placed = Placed(staged.at(target), done)
        self._placed[slot] = placed
        return moved | {slot: placed}

    def release(self, slot: int) -> None:
        if self._placed.pop(slot, None) is not None:
            self._regions.give(slot)
            self._released = self._device.record()

    def _compact(self) -> dict[int, Placed]:
        """Closes the gaps, in the order of the steps, after all copies that are on their way: also those into
        slots that were emptied since, whose regions others may now move to."""
        if self._copied is not None:
            self._copied.join()
        moved = {}
        for slot, shift in self._regions.compact():
            self._shift(shift)
            adapter = self._placed[slot].adapter
            region = self._memory[shift.target : shift.target + shift.size]
            # Its copy, if it was still on its way, comes before this move.
            moved[slot] = self._placed[slot] = Placed(adapter.at(region), None)
        self._released = self._device.record()
        return moved

    def _shift(self, shift: Shift) -> None:
        """Downwards, so a piece never overwrites one that has yet to move."""
        for first in range(0, shift.size, BOUNCE_BYTES):
            size = min(BOUNCE_BYTES, shift.size - first)
            source, target = shift.source + first, shift.target + first
            piece = self._bounce[:size].copy_(self._memory[source : source + size])
            self._memory[target : target + size].copy_(piece)
