"""How far the reading of a model's weights has come."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorikeet_server.weights.source import Slice, WeightSource

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load has come. `total` counts each of the source's tensors once, in elements."""

    done: int
    total: int


class ReportingSource:
    """A source that tells `report` after each tensor how much has been read; a slice counts as its size."""

    def __init__(self, inner: WeightSource, report: Callable[[Progress], None], share: int = 1) -> None:
        """`share`: over how many ranks the weights are divided, so that a rank's own part counts as the
        whole."""
        self._inner = inner
        self._report = report
        self._total = sum(math.prod(inner.shape(name)) for name in inner.names()) // share
        self._done = 0

    @property
    def digest(self) -> str:
        return self._inner.digest

    @property
    def config(self) -> dict[str, Any]:
        return self._inner.config

    @property
    def quantised(self) -> bool:
        return self._inner.quantised

    def names(self) -> list[str]:
        return self._inner.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._inner.shape(name)

    def load(self, name: str, part: Slice | None = None) -> torch.Tensor:
        tensor = self._inner.load(name, part)
        self._done = min(self._done + tensor.numel(), self._total)
        self._report(Progress(self._done, self._total))
        return tensor
