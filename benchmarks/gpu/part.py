"""Runs one part in a process of its own, within its time, and records what it found."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu import checks, served
from benchmarks.gpu.carried import KIT
from benchmarks.gpu.machine import SECONDS, CheckError, Machine
from benchmarks.gpu.results import Outcome, Results, figures, table
from benchmarks.gpu.scale import DRY, REAL, Scale
from benchmarks.serving.facts import facts
from benchmarks.serving.report import Row

CHECKS: dict[str, Callable[[Machine], checks.Rows]] = {
    "kernels": checks.kernels,
    "correctness": checks.correctness,
    "sanitizer": checks.sanitizer,
    **{name: partial(checks.benchmark, part=name) for name in ("decode", "prefill", "peers", "variants")},
    "smollm2": checks.smollm2,
    "ranks-nccl": checks.ranks_nccl,
    "model": checks.model,
}
LOADS: dict[str, Callable[[Machine, Scale], Iterator[Row]]] = {
    "distinct": served.distinct,
    "ranks": served.ranks,
    "popular": served.popular,
    "host": served.host,
}


def limit(seconds: int) -> None:
    """From now on; then what runs is ended by a CheckError."""

    def out_of_time(*_: object) -> None:
        raise CheckError(f"not done within {seconds} s")

    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(seconds)


def command(name: str, machine: Machine) -> str:
    seconds = f" SECONDS={machine.seconds}" if machine.seconds != SECONDS else ""
    return f"make gpu-check PART={name}{seconds}" + (" DRY_RUN=1" if machine.dry else "")


def main() -> None:
    name, device, work, out, seconds = sys.argv[1:]
    machine = Machine(Path(work), Path(out), device == "cpu", int(seconds))
    outcome = Outcome(facts=facts("none", command(name, machine)))
    commit = KIT / "commit"
    if commit.exists():
        outcome.facts["commit"] = commit.read_text().strip()
    limit(machine.seconds)
    started = time.monotonic()
    try:
        if name in LOADS:
            for row in LOADS[name](machine, DRY if machine.dry else REAL):
                outcome.rows.append(figures(row))
        else:
            outcome.rows += CHECKS[name](machine)
    except Exception as error:
        outcome.passed = False
        outcome.log = str(error) if isinstance(error, CheckError) else traceback.format_exc()
    signal.alarm(0)
    outcome.seconds = time.monotonic() - started
    known = machine.out if machine.dry else ROOT / "benchmarks" / "results"
    Results(machine.out, known).add(name, outcome)
    print("\n".join(table(outcome.rows)), outcome.log, flush=True)
    sys.exit(not outcome.passed)


if __name__ == "__main__":
    main()
