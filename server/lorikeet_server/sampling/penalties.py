"""Repetition, frequency and presence penalties, with token counts kept for the slots that use them only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lorikeet_server.device.base import Device, Parcel
from lorikeet_server.kernels import Penalties


@dataclass(frozen=True, slots=True)
class PenalisedRows:
    """The rows of one step that have penalties, on the device."""

    rows: torch.Tensor  # i64 [penalised]
    lanes: torch.Tensor  # i64 [penalised]
    factors: torch.Tensor  # f32 [penalised, 3]


class PenaltyCounts:
    """Token counts `[lanes, vocab]`. A slot with a penalty holds a lane; the others hold none and cost
    nothing.

    Lanes are allocated on demand and doubled, since a count row of a 128k vocabulary takes 640 kB.
    """

    def __init__(self, slots: int, vocab_size: int, device: Device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._lane = np.full(slots, -1, np.int64)
        self._factors = np.zeros((slots, 3), np.float32)
        self._free: list[int] = []
        self._output = torch.zeros(0, vocab_size, dtype=torch.int32, device=device.where)
        self._seen = torch.zeros(0, vocab_size, dtype=torch.bool, device=device.where)

    @property
    def in_use(self) -> bool:
        return len(self._free) < self._output.shape[0]

    def admit(
        self, slot: int, factors: tuple[float, float, float], history: Sequence[int], history_output: int
    ) -> None:
        """Gives `slot` a lane holding its history; `factors` are (repetition, frequency, presence)."""
        if not self._free:
            self._grow()
        lane = self._free.pop()
        self._lane[slot] = lane
        self._factors[slot] = factors
        self._output[lane].zero_()
        self._seen[lane].zero_()
        if history:
            (tokens,) = self._device.upload(np.array(history, np.int64))
            self._seen[lane].index_fill_(0, tokens, True)
            if history_output:
                produced = tokens[-history_output:]
                self._output[lane].index_add_(0, produced, torch.ones_like(produced, dtype=torch.int32))

    def release(self, slot: int) -> None:
        if self._lane[slot] >= 0:
            self._free.append(int(self._lane[slot]))
            self._lane[slot] = -1

    def clear(self) -> None:
        for slot in np.flatnonzero(self._lane >= 0):
            self.release(int(slot))

    def rows(self, slots: npt.NDArray[np.int64], parcel: Parcel) -> PenalisedRows | None:
        """Those rows of a step whose slot holds a lane; None if there are none."""
        if not self.in_use:
            return None
        rows = np.flatnonzero(self._lane[slots] >= 0)
        if not rows.size:
            return None
        held, add = slots[rows], parcel.add
        return PenalisedRows(add(rows), add(self._lane[held]), add(self._factors[held]))

    def of(self, rows: PenalisedRows) -> Penalties:
        """What these rows are penalised by."""
        return Penalties(rows.rows, rows.lanes, rows.factors, self._output, self._seen)

    def record(self, tokens: torch.Tensor, of: PenalisedRows) -> None:
        """Counts one sampled token `[rows]` per row as output of its slot."""
        produced = tokens[of.rows]
        # A number would be copied to the device first, and the copy waited for.
        self._seen[of.lanes, produced] = torch.ones_like(produced, dtype=torch.bool)
        self._output[of.lanes, produced] += 1

    def _grow(self) -> None:
        old = self._output.shape[0]
        new = max(4, 2 * old)
        output = torch.zeros(new, self._vocab_size, dtype=torch.int32, device=self._device.where)
        seen = torch.zeros(new, self._vocab_size, dtype=torch.bool, device=self._device.where)
        output[:old], seen[:old] = self._output, self._seen
        self._output, self._seen = output, seen
        self._free.extend(range(old, new))
