"""Candidates in turn, round after round, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one call."""

    best: float  # wall time
    median: float
    cpu: float  # of all threads, best: hardly moves when other processes take the cores


def measure(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Each candidate once to warm up, then `rounds` times."""
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(rounds + 1):
        for name, call in candidates.items():
            cpu_start, start = time.process_time(), time.perf_counter()
            call()
            if round_number:
                wall[name].append((time.perf_counter() - start) * 1e3)
                cpu[name].append((time.process_time() - cpu_start) * 1e3)
    return {
        name: Timing(min(wall[name]), statistics.median(wall[name]), min(cpu[name])) for name in candidates
    }
