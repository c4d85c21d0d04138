"""What a layer's attention computes."""

from typing import NamedTuple


class AttentionShape(NamedTuple):
    """Heads on this rank. Layers of equal shape share a plan."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None  # keys that a query sees, its own included, at least 1; None: all before it
    soft_cap: float | None = None  # a score s becomes soft_cap * tanh(s / soft_cap), above 0; None: it stays

    @property
    def q_width(self) -> int:
        """Columns of the queries."""
        return self.num_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        """Columns of queries, keys and values side by side."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
