"""How the rows of one step are sampled: everything that the host knows of it, made before the step is called
for."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lorikeet_server.device.base import Parcel
from lorikeet_server.kernels import Filters
from lorikeet_server.sampling.filters import Ways
from lorikeet_server.sampling.params import SlotParams
from lorikeet_server.sampling.penalties import PenalisedRows
from lorikeet_server.sampling.rng import uniforms

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """The rows with a temperature, on the device."""

    rows: torch.Tensor  # i64 [drawn]
    filters: Filters
    uniform: torch.Tensor  # f64 [drawn]
    ways: Ways

    @staticmethod
    def of(params: SlotParams, slots: Ints, positions: Ints, parcel: Parcel) -> "DrawnRows | None":
        """None if there are none."""
        rows = np.flatnonzero(params.temperature[slots] > 0)
        if not rows.size:
            return None
        slots, positions = slots[rows], positions[rows]
        top_k, top_p, typical_p = params.top_k[slots], params.top_p[slots], params.typical_p[slots]
        add, uniform = parcel.add, uniforms(params.seed[slots], positions)
        numbers = add(params.temperature[slots]), add(top_k), add(top_p), add(typical_p)
        filters = Filters(*numbers, any_typical=bool((typical_p < 1).any()))
        ways = Ways.of(top_k, top_p, typical_p, params.vocab_size, parcel)
        return DrawnRows(add(rows), filters, add(uniform), ways)


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Of all rows of a step."""

    slots: Ints  # [rows]
    drawn: DrawnRows | None
    penalised: PenalisedRows | None
    # Rows that asked for alternatives, how many each, and the same rows on the device.
    alternative_rows: Ints
    alternative_counts: Ints
    alternatives: torch.Tensor | None

    @staticmethod
    def of(params: SlotParams, slots: Ints, positions: Ints, parcel: Parcel) -> "SamplingPlan":
        """`slots` `[rows]` names each row's parameters, `positions` `[rows]` is where in its sequence the new
        token will stand."""
        wanted = params.top_logprobs[slots]
        rows = np.flatnonzero(wanted)
        return SamplingPlan(
            slots,
            DrawnRows.of(params, slots, positions, parcel),
            params.penalties.rows(slots, parcel),
            rows,
            wanted[rows],
            parcel.add(rows) if rows.size else None,
        )
