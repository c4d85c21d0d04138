"""The adapter tables of a whole model, kept together, and the rows of a step that refer to them."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from lorikeet_server.kernels.lora_batch import LoraBatch, LoraSegments, RowSlots
from lorikeet_server.kernels.lora_table import LoraTable


class LoraModule(NamedTuple):
    """One fused linear: its input width, and the output widths of its slices in column order."""

    in_features: int
    out_features: tuple[int, ...]


class LoraBatcher(Protocol):
    """Sorts the rows of one step by adapter. Each call may overwrite what the call before returned."""

    def __call__(self, row_slots: RowSlots) -> LoraBatch:
        """`row_slots` [T]: the adapter slot of each row, negative for none."""


class LoraTables(Protocol):
    """One table for each module, in the order that the modules were given."""

    @property
    def tables(self) -> Sequence[LoraTable]: ...

    def commit(self) -> None:
        """Let the kernels see what was set and cleared; to be called after the moves of a step, before its
        rows are batched. Waits for nothing."""

    def batcher(self) -> LoraBatcher:
        """A place for the rows of a step. Take one for each batch that must be alive at the same time."""


class HostLoraTables:
    """Tables that the kernels read where they are written."""

    def __init__(self, modules: Sequence[LoraModule], num_slots: int) -> None:
        self.tables = tuple(LoraTable(*module, num_slots) for module in modules)

    def commit(self) -> None:
        """Nothing to do."""

    def batcher(self) -> LoraBatcher:
        return LoraSegments.build
