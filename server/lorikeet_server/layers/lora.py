"""Where adapters attach: one site per fused linear, one target per checkpoint module in it.

A rank's part of a target: a column-parallel module shards B and replicates A, a row-parallel one the other
way round. Its product joins the base's before the base's own all-reduce, so LoRA adds no collective.
"""

from lorikeet_server.adapters.targets import LoraTarget
from lorikeet_server.kernels import LoraModule, LoraTable


class LoraSite:
    """The adapter table of one fused linear on this rank. The table exists once the number of slots is
    known; without slots there is none, and LoRA costs nothing."""

    def __init__(self, in_features: int, out_features: tuple[int, ...]) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self.targets: list[LoraTarget] = []
        self.table: LoraTable | None = None

    def add_target(
        self, name: str, in_features: int, out_features: int, inputs: range, outputs: range
    ) -> None:
        """Appends a module; the order of calls is the order of the fused outputs. Sizes are the whole
        module's."""
        self.targets.append(LoraTarget(name, in_features, out_features, inputs, outputs))

    @property
    def module(self) -> LoraModule:
        """What the kernels need to know to make the table."""
        return LoraModule(self.in_features, self.out_features)
