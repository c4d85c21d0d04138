"""The adapter batch of some rows of a step."""

import numpy as np
import numpy.typing as npt

from lorikeet_server.device.base import Parcel
from lorikeet_server.kernels import LoraBatch
from lorikeet_server.models.causal_lm import CausalLM


class RowAdapters:
    """Batches of rows that have adapters."""

    def __init__(self, model: CausalLM, parcel: Parcel) -> None:
        self._batcher = model.adapters.batcher(parcel) if model.adapters is not None else None

    def __call__(self, slots: npt.NDArray[np.int32]) -> LoraBatch | None:
        """Of rows with these adapter slots; None if none has an adapter."""
        if self._batcher is None or not (slots >= 0).any():
            return None
        return self._batcher(slots)
