"""Which bytes of one piece of memory belong to whom. Only arithmetic: nothing is allocated or copied here."""

from typing import NamedTuple


class Shift(NamedTuple):
    """A region that moves down: `size` bytes from `source` to `target`, which may overlap."""

    source: int
    target: int
    size: int


class Regions:
    """Regions by key, in one range of `size` bytes. First fit; what does not fit between the others fits
    after `compact`, as long as the bytes are there: the budget is exact."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._held: dict[int, tuple[int, int]] = {}  # key: start, size; in the order of starts

    @property
    def free(self) -> int:
        """Bytes that nobody holds."""
        return self.size - sum(size for _, size in self._held.values())

    def start(self, key: int) -> int:
        """Where the region of `key` begins."""
        return self._held[key][0]

    def take(self, key: int, size: int) -> int | None:
        """Gives `key`, which holds nothing, a region; its start, or None where no gap is large enough."""
        at = 0
        for start, taken in self._held.values():
            if start - at >= size:
                break
            at = start + taken
        if at + size > self.size:
            return None
        self._held[key] = at, size
        self._held = dict(sorted(self._held.items(), key=lambda item: item[1]))
        return at

    def give(self, key: int) -> None:
        """Takes back what `key` holds, if anything."""
        self._held.pop(key, None)

    def compact(self) -> list[tuple[int, Shift]]:
        """Closes all gaps. Returns the keys whose regions move, with how; to be done in this order."""
        shifts, at = [], 0
        for key, (start, size) in self._held.items():
            if start > at:
                shifts.append((key, Shift(start, at, size)))
                self._held[key] = at, size
            at += size
        return shifts
