"""Rows of figures as a Markdown table, JSON and a bar chart of the ratios."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Row:
    """A figure as a ratio to a peer measured in the same run. `goal` is the ratio to reach; `at_most`
    turns it around. `spread`: the least and the largest of the ratios whose median it is.
    """

    what: str
    ours: float
    peer: float
    unit: str
    goal: float | None = None
    at_most: bool = False
    spread: tuple[float, float] | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.peer if self.peer else float("nan")

    @property
    def reached(self) -> bool | None:
        if self.goal is None:
            return None
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal


def markdown(rows: list[Row], facts: dict[str, str]) -> str:
    lines = ["| what | ratio | to reach | ours | peer | unit |", "|---|---|---|---|---|---|"]
    for row in rows:
        goal = (
            ""
            if row.goal is None
            else f"{'≤' if row.at_most else '≥'} {row.goal:g} {'✓' if row.reached else '✗'}"
        )
        spread = "" if row.spread is None else " ({:.2f} to {:.2f})".format(*row.spread)
        cells = f"**{row.ratio:.2f}**{spread}", goal, f"{row.ours:.4g}", f"{row.peer:.4g}", row.unit
        lines.append(f"| {row.what} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {key}: {value}" for key, value in facts.items()), ""])


def chart(rows: list[Row], path: Path) -> None:
    shown = [row for row in rows if row.ratio == row.ratio]
    figure, axes = plt.subplots(figsize=(10, 0.42 * len(shown) + 1.2))
    for index, row in enumerate(shown):
        axes.barh(index, row.ratio, color="#2f7a3a" if row.reached in (True, None) else "#b3541e", height=0.6)
        axes.text(row.ratio, index, f" {row.ratio:.2f}", va="center", fontsize=9)
        if row.goal is not None:
            axes.plot([row.goal, row.goal], [index - 0.4, index + 0.4], color="#222", linewidth=1.5)
    axes.set_yticks(range(len(shown)), [row.what for row in shown], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("ratio to the peer of the same run; the mark is the goal")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def write(rows: list[Row], facts: dict[str, str], stem: Path) -> None:
    """STEM.md, STEM.json and STEM.svg."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text(markdown(rows, facts))
    data = {
        "facts": facts,
        "rows": [asdict(row) | {"ratio": row.ratio, "reached": row.reached} for row in rows],
    }
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    chart(rows, stem.with_suffix(".svg"))
