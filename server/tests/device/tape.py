"""What captured work does, to be done again."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves


class Tape:
    """As in a CUDA graph, tensors stay where they were and Python is not run again."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[[], Any], Any]] = []

    def record(self, call: Callable[[], Any], out: Any) -> None:
        """`call` gave `out`, tensors among other things."""
        self._calls.append((call, out))

    def replay(self) -> None:
        """Every call in order; what each gives is put where it was the first time."""
        for call, out in self._calls:
            for old, new in zip(tree_leaves(out), tree_leaves(call()), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
