"""Linear = this rank's shard of the weight + packed storage + the LoRA hook, in that order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorikeet_server.kernels import LoraBatch, PackedLinear, Product
from lorikeet_server.layers.build import Build
from lorikeet_server.layers.lora import LoraSite
from lorikeet_server.weights import Slice


class Linear:
    """`y = x W^T`, plus the adapters' products, plus bias. Several checkpoint modules may be fused along the
    output."""

    __slots__ = ("_all_reduce", "_kernels", "bias", "packed", "site")

    def __init__(
        self, build: Build, weight: torch.Tensor, bias: torch.Tensor | None, site: LoraSite, *, reduce: bool
    ) -> None:
        self._kernels = build.kernels
        self._all_reduce = build.tp.all_reduce if reduce and build.tp.size > 1 else None
        self.packed: PackedLinear = build.kernels.pack_linear(weight, build.mode)
        self.bias = bias
        self.site = site
        build.sites.append(site)

    def __call__(self, x: torch.Tensor, batch: LoraBatch | None) -> torch.Tensor:
        """`x` `[rows, in]` -> `[rows, out]`."""
        y = self._kernels.linear(x, self.packed)
        if batch is not None and self.site.table is not None:
            self._kernels.lora(y, x, self.site.table, batch)
        if self._all_reduce is not None:
            self._all_reduce(y)
        if self.bias is not None:
            y += self.bias
        return y

    def product(self, x: torch.Tensor, batch: LoraBatch | None) -> Product:
        """As a call, but what adapters add may be left to whoever reads it, which cannot be where ranks have
        to sum it."""
        table, product = self.site.table, None
        if batch is not None and table is not None and self._all_reduce is None:
            product = self._kernels.adapted_linear(x, self.packed, table, batch)
        if product is None:
            return Product(self(x, batch))
        if self.bias is not None:
            product.y.add_(self.bias)
        return product


@dataclass(frozen=True, slots=True)
class Part:
    """One module of a fused column-parallel linear: its whole width, and the rows that this rank holds."""

    module: str
    out_features: int
    rows: range


def column_parallel(
    build: Build, prefix: str, parts: Sequence[Part], in_features: int, *, bias: bool
) -> Linear:
    """Fuses modules that read the same input; each rank computes some of their outputs."""
    weights, biases = [], []
    site = LoraSite(in_features, tuple(len(part.rows) for part in parts))
    for part in parts:
        name, rows = f"{prefix}.{part.module}", Slice(0, part.rows.start, part.rows.stop)
        weights.append(build.matrix(f"{name}.weight", (part.out_features, in_features), rows))
        if bias:
            biases.append(build.vector(f"{name}.bias", part.out_features, rows))
        site.add_target(name, in_features, part.out_features, range(in_features), part.rows)
    return Linear(build, torch.cat(weights), torch.cat(biases) if bias else None, site, reduce=False)


def row_parallel(
    build: Build, name: str, in_features: int, out_features: int, columns: range, *, bias: bool
) -> Linear:
    """Each rank multiplies its columns of the input; the products are summed over the ranks."""
    part = Slice(1, columns.start, columns.stop)
    weight = build.matrix(f"{name}.weight", (out_features, in_features), part)
    site = LoraSite(len(columns), (out_features,))
    site.add_target(name, in_features, out_features, columns, range(out_features))
    return Linear(
        build, weight, build.vector(f"{name}.bias", out_features) if bias else None, site, reduce=True
    )
