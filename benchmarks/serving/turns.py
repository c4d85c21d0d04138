"""Loads on one server that take turns, and the figure that two of them give."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.serving.load import Load, Target
from benchmarks.serving.report import Row

Round = dict[str, float]


def in_turns(target: Target, runs: int, loads: Mapping[str, Load], figure: str) -> list[Round]:
    """A figure of loads that take turns, forwards and backwards: a machine's speed drifts by more than they
    differ.
    """
    names = list(loads)
    rounds = []
    for seed in range(2 * runs + 1):
        rounds.append({name: loads[name].once(target, seed)[figure] for name in names})
        names.reverse()
    return rounds


def middle(
    what: str,
    rounds: list[Round],
    over: str,
    under: str,
    unit: str,
    goal: float | None,
    at_most: bool = False,
) -> Row:
    """The round whose ratio is the median."""
    ratios = sorted((figures[over] / figures[under], index) for index, figures in enumerate(rounds))
    chosen = rounds[ratios[len(ratios) // 2][1]]
    spread = (ratios[0][0], ratios[-1][0])
    return Row(what, chosen[over], chosen[under], unit, goal, at_most, spread)
