"""`python -m benchmarks.kernels.step [--before DIR]`: what adapters add to a step, and a change takes off.

DIR is a checkout of an earlier commit. Its kernels and these run in two processes that take turns. Both
effects are hundredths of a step, less than the speed of a shared machine changes within a second, so what
counts is the median of the ratios of neighbours. Beside it stands the interval that has the true median with
a probability of 95 %, if the ratios are independent.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from benchmarks import ROOT

BESIDE = {"random": "one", "distinct": "one", "prompt-random": "prompt-one"}
Times = dict[tuple[str, str], list[float]]  # milliseconds by (commit, step)


class Worker:
    """A process that runs steps of the checkout at `tree`."""

    def __init__(self, tree: Path) -> None:
        # What is measured comes from there, what measures from here.
        environment = {**os.environ, "PYTHONPATH": str(tree / "server")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.kernels.steps"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        word, *self.steps = self._answer().split()
        assert word == "ready"

    def milliseconds(self, step: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(step + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SystemExit(f"the process that runs the steps ended with {self._process.wait()}")
        return line


def measure(workers: dict[str, Worker], steps: list[str], seconds: float) -> Times:
    """All in turn, forwards and backwards."""
    times: Times = defaultdict(list)
    turn = [(commit, step) for step in steps for commit in workers]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for commit, step in turn:
            times[commit, step].append(workers[commit].milliseconds(step))
        turn.reverse()
    return times


def ratio(over: list[float], under: list[float]) -> str:
    ratios = sorted(a / b for a, b in zip(over, under, strict=True))
    # Order statistics around a median, by the normal approximation of the binomial distribution.
    middle, off = len(ratios) / 2, 0.98 * len(ratios) ** 0.5
    low, high = ratios[max(0, int(middle - off))], ratios[min(len(ratios) - 1, int(middle + off))]
    return f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.step",
        description="Adapters in a step, and a change, beside each other.",
    )
    parser.add_argument("--before", type=Path, help="a checkout of the commit to compare with")
    parser.add_argument("--steps", nargs="+", help="some of them (all)")
    parser.add_argument("--seconds", type=float, default=240)
    arguments = parser.parse_args()
    trees = {"now": ROOT} | ({"before": arguments.before.resolve()} if arguments.before else {})
    workers = {commit: Worker(tree) for commit, tree in trees.items()}
    steps = arguments.steps or workers["now"].steps
    times = measure(workers, steps, arguments.seconds)
    for worker in workers.values():
        worker.end()
    for step in steps:
        line = f"{step:13} {statistics.median(times['now', step]):7.2f} ms"
        if arguments.before:
            line += f"  now / before {ratio(times['now', step], times['before', step])}"
        if (one := BESIDE.get(step, "")) in steps:
            for commit in trees:
                line += f"  / {one}, {commit} {ratio(times[commit, step], times[commit, one])}"
        print(line)
    print(f"{len(times['now', steps[0]])} rounds")


if __name__ == "__main__":
    main()
