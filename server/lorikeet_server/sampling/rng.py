"""Random numbers that depend on a row's seed and position only.

A counter-based generator has no state to carry: a sequence that was preempted and recomputed, or that shares
its step with other rows, draws the same numbers as one that ran alone.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_WEYL = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: U64) -> U64:
    """SplitMix64's output function: a bijection of 64-bit words in which every input bit reaches every output
    bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def uniforms(seed: U64, position: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per row.

    52 bits, not 53: then `u * total` stays below `total` in double arithmetic, and the search in a cumulative
    distribution never runs past its end.
    """
    # The seed is mixed first, so that seeds 1, 2, 3 ... start streams that share no stretch of the Weyl
    # sequence.
    bits = _mix(_mix(seed + _WEYL) + _WEYL * (position.astype(np.uint64) + np.uint64(1)))
    return (bits >> np.uint64(12)).astype(np.float64) * 2.0**-52
