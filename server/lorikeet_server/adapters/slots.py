"""The device tier: which staged adapter is in which slot of the model's LoRA tables.

Only the compute thread calls this, between steps, so a table never changes under a kernel.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass

import torch

from lorikeet_server.adapters.device_memory import AdapterMemory, Placed
from lorikeet_server.adapters.staged import StagedAdapter
from lorikeet_server.kernels import LoraTables


@dataclass(frozen=True, slots=True)
class FailedMove:
    """A move that did not happen: the slot is empty."""

    slot: int
    digest: str
    message: str


class AdapterSlots:
    """Applies the router's moves to `tables` (None: there are no slots). `staged` knows the host tier."""

    def __init__(
        self,
        tables: LoraTables | None,
        memory: AdapterMemory,
        staged: Callable[[str], StagedAdapter | None],
    ) -> None:
        self._tables = tables or LoraTables([], 0, torch.float32)
        self._memory, self._staged = memory, staged
        self._held: dict[int, StagedAdapter] = {}  # in the tables
        self._coming: dict[int, Placed] = {}  # on their way

    def move(self, slot: int, digest: str) -> FailedMove | None:
        """Put an adapter into a slot, whatever was there; an empty digest empties it. It is in the slot once
        `arrived` says so. Raises `ValueError` for a slot that is none."""
        self._empty(slot)
        if not digest:
            return None
        staged = self._staged(digest)
        if staged is None:
            return FailedMove(slot, digest, f"adapter {digest} is not staged on this rank")
        try:
            for other, placed in self._memory.place(slot, staged).items():
                if other in self._held:  # it was moved to make room
                    self._fill(other, placed.adapter)
                else:
                    self._coming[other] = placed
        except (RuntimeError, MemoryError) as error:
            self._empty(slot)
            return FailedMove(slot, digest, f"adapter {digest} does not fit slot {slot}: {error}")
        return None

    def arrived(self, needed: Container[int] = ()) -> tuple[list[int], list[FailedMove]]:
        """Slots whose adapters have come since the last call, now in the tables, and those that could not be
        put there. The slots in `needed` are among them: the next step starts once their copies are done.
        Waits for nothing."""
        ready, failed = [], []
        for slot, (adapter, done) in list(self._coming.items()):
            if done is not None and not done.reached():
                if slot not in needed:
                    continue
                done.join()
            try:
                self._fill(slot, adapter)
                ready.append(slot)
            except ValueError as error:
                self._empty(slot)
                message = f"adapter {adapter.digest} does not fit slot {slot}: {error}"
                failed.append(FailedMove(slot, adapter.digest, message))
        return ready, failed

    def on_their_way(self) -> bool:
        """Whether there are adapters that `arrived` would not find yet."""
        return any(done is not None and not done.reached() for _, done in self._coming.values())

    def clear(self) -> None:
        """Empty every slot, as at the start of an `Execute` stream."""
        for slot in range(len(self._tables.held)):
            self._empty(slot)

    def held(self, slot: int) -> str:
        """Digest of the adapter in a slot; empty if there is none."""
        adapter = self._held.get(slot)
        return adapter.digest if adapter is not None else ""

    def _fill(self, slot: int, adapter: StagedAdapter) -> None:
        self._tables.put(slot, adapter.matrices)
        self._coming.pop(slot, None)
        self._held[slot] = adapter

    def _empty(self, slot: int) -> None:
        self._coming.pop(slot, None)
        self._held.pop(slot, None)
        self._tables.clear(slot)
        self._memory.release(slot)
