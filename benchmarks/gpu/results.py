"""What the parts found, as JSON and as Markdown; the newest outcome of a part replaces its last."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving.report import Row


@dataclass
class Outcome:
    """Of one part. `rows`: figures, one dictionary of the same keys each. `log`: why it failed."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    passed: bool = True
    log: str = ""
    seconds: float = 0.0
    facts: dict[str, str] = field(default_factory=dict)


def figures(row: Row) -> dict[str, Any]:
    """A ratio with its goal, as a line of a table."""
    goal = "" if row.goal is None else f"{'≤' if row.at_most else '≥'} {row.goal:.3g}"
    verdict = {None: "", True: " ✓", False: " ✗"}[row.reached]
    ratio, ours, peer = (float(f"{value:.4g}") for value in (row.ratio, row.ours, row.peer))
    return {
        "what": row.what,
        "ratio": ratio,
        "to reach": goal + verdict,
        "ours": ours,
        "peer": peer,
        "unit": row.unit,
    }


class Results:
    """`gpu-check.json` and `gpu-check.md` in `directory`; parts that are not run again keep what stands in
    `known`.
    """

    def __init__(self, directory: Path, known: Path) -> None:
        self.directory = directory
        own, known = directory / "gpu-check.json", known / "gpu-check.json"
        last = own if own.exists() else known
        self.parts: dict[str, Any] = json.loads(last.read_text()) if last.exists() else {}

    def add(self, name: str, outcome: Outcome) -> None:
        self.parts[name] = asdict(outcome)
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "gpu-check.json").write_text(json.dumps(self.parts, indent=1) + "\n")
        (self.directory / "gpu-check.md").write_text(self.markdown())

    def markdown(self) -> str:
        lines = ["# GPU check", ""]
        for name, part in self.parts.items():
            state = "passed" if part["passed"] else "FAILED"
            lines += [f"## {name}: {state} in {part['seconds']:.0f} s", ""]
            lines += table(part["rows"])
            if part["log"]:
                lines += ["```", part["log"].strip(), "```", ""]
            lines += [f"- {key}: {value}" for key, value in part["facts"].items()] + [""]
        return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(str(value) for value in row.values()) for row in rows]
    return [*(f"| {line} |" for line in lines), ""]
