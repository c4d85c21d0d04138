"""The device tier: which staged adapter is in which slot of the model's LoRA tables.

Only the compute thread calls this, between steps, so a table never changes under a kernel.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from lorikeet_server.adapters.staged import StagedAdapter
from lorikeet_server.kernels import LoraTable


@dataclass(frozen=True, slots=True)
class FailedMove:
    """A move that did not happen: the slot is empty."""

    slot: int
    digest: str
    message: str


class AdapterSlots:
    """Applies the router's moves to `tables`, by name of the fused module. `staged` knows the host tier."""

    def __init__(
        self,
        tables: Mapping[str, LoraTable],
        num_slots: int,
        device: torch.device,
        staged: Callable[[str], StagedAdapter | None],
    ) -> None:
        self._tables, self._num_slots, self._device, self._staged = tables, num_slots, device, staged
        self._held: dict[int, StagedAdapter] = {}

    def move(self, slot: int, digest: str) -> FailedMove | None:
        """Put an adapter into a slot, whatever was there; an empty digest empties it."""
        if not 0 <= slot < self._num_slots:
            return FailedMove(slot, digest, f"adapter slot {slot} is outside 0..{self._num_slots - 1}")
        self._empty(slot)
        if not digest:
            return None
        staged = self._staged(digest)
        if staged is None:
            return FailedMove(slot, digest, f"adapter {digest} is not staged on this rank")
        try:
            placed = staged.to(self._device)
            for pair in placed.pairs:
                table = self._tables[pair.target.table]
                table.set_slot(slot, pair.target.slice_index, pair.a, pair.b, pair.scale)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:  # RuntimeError: out of device memory
            self._empty(slot)
            return FailedMove(slot, digest, f"adapter {digest} does not fit slot {slot}: {error}")
        self._held[slot] = placed
        return None

    def clear(self) -> None:
        """Empty every slot, as at the start of an `Execute` stream."""
        for slot in range(self._num_slots):
            self._empty(slot)

    def held(self, slot: int) -> str:
        """Digest of the adapter in a slot; empty if there is none."""
        adapter = self._held.get(slot)
        return adapter.digest if adapter is not None else ""

    def _empty(self, slot: int) -> None:
        self._held.pop(slot, None)
        for table in self._tables.values():
            table.clear_slot(slot)
