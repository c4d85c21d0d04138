"""A weight as a backend keeps it."""

from typing import Literal, Protocol

LinearMode = Literal["float32", "float16", "bfloat16"]  # what a weight is rounded to


class PackedLinear(Protocol):
    """A weight in the backend's own layout; only the backend that packed it can read it."""

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def mode(self) -> LinearMode: ...
