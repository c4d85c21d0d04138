"""What a linear layer gives."""

from typing import NamedTuple

from torch import Tensor


class Product(NamedTuple):
    """`y + delta`, where there is a delta: adapters' products that were computed beside the base's, and are
    added by whoever reads them."""

    y: Tensor  # act [T, out]
    delta: Tensor | None = None  # act [T, out]

    def whole(self) -> Tensor:
        """The sum, in the memory of `y`."""
        return self.y if self.delta is None else self.y.add_(self.delta)
