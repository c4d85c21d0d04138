"""What was measured, as JSON for programs and Markdown for people."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.kernels.gpu.shapes import Cell, Machine

# The bounds of issue 4, for reading the figures; nothing fails by them.
LARGE, MIDDLE = 20e6, 4e6  # adapter bytes of a launch
# Variants with the base product, which are held against each other.
AFTER_BASE, AS_SERVED = "base product, then both", "base product and both as served"
# The same of another library.
BEFORE = {phase: f"{phase} before" for phase in ("shrink", "expand", "both")}


@dataclass
class Line:
    """Microseconds of one cell: ours in both phases and each alone, peers both at once."""

    cell: Cell
    ours: dict[str, float]
    peers: dict[str, float] = field(default_factory=dict)
    variants: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def share(self, phase: str, machine: Machine) -> float:
        """Of what the machine could do."""
        return self.cell.least_microseconds(phase, machine) / self.ours[phase]

    @property
    def speedup(self) -> float | None:
        """Over the fastest peer."""
        return min(self.peers.values()) / self.ours["both"] if self.peers else None

    def data(self, machine: Machine) -> dict[str, Any]:
        cell = self.cell
        return {
            "module": cell.module,
            "rows": cell.rows,
            "adapters": cell.adapters,
            "rank": cell.rank,
            "adapter_bytes": cell.a_bytes + cell.b_bytes,
            "microseconds": self.ours,
            "adapter_gb_per_s": (cell.a_bytes + cell.b_bytes) / self.ours["both"] / 1e3,
            "share_of_limit": {phase: self.share(phase, machine) for phase in self.ours},
            "peers": self.peers,
            "variants": self.variants,
            "failed": self.failed,
            "speedup": self.speedup,
        }


def write(
    directory: Path, part: str, facts: dict[str, Any], machine: Machine, lines: list[Line]
) -> list[Path]:
    """`sgmv-PART.json` and `.md` in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    found = summary(lines, machine)
    data = {
        "facts": facts,
        "summary": found,
        "lines": [line.data(machine) for line in lines],
    }
    as_json, as_text = directory / f"sgmv-{part}.json", directory / f"sgmv-{part}.md"
    as_json.write_text(json.dumps(data, indent=1) + "\n")
    as_text.write_text(markdown(part, facts, found, lines, machine))
    return [as_json, as_text]


def summary(lines: list[Line], machine: Machine) -> dict[str, float | None]:
    """Medians of the shares by how much a launch reads, and the speed-up over the fastest peer."""
    found: dict[str, float | None] = {}
    for phase, attribute in (("shrink", "a_bytes"), ("expand", "b_bytes")):
        sizes = [(getattr(line.cell, attribute), line) for line in lines]
        large = [line.share(phase, machine) for size, line in sizes if size >= LARGE]
        middle = [line.share(phase, machine) for size, line in sizes if MIDDLE <= size < LARGE]
        small = [line.ours[phase] for size, line in sizes if size < MIDDLE]
        found[f"{phase}, 20 MB and more, median share of the limit"] = _median(large)
        found[f"{phase}, 4 to 20 MB, median share of the limit"] = _median(middle)
        found[f"{phase}, below 4 MB, median microseconds"] = _median(small)
    for phase, name in BEFORE.items():
        if ratios := [line.variants[name] / line.ours[phase] for line in lines if name in line.variants]:
            found[f"{name}, geometric mean of the time over now"] = statistics.geometric_mean(ratios)
            found[f"{name}, least of that"] = min(ratios)
    apart = {AFTER_BASE, AS_SERVED, *BEFORE.values()}
    alone = (name for line in lines for name in line.variants if name not in apart)
    for name in dict.fromkeys(alone):
        ratios = [line.variants[name] / line.ours["both"] for line in lines if name in line.variants]
        found[f"{name}, geometric mean of the time over ours"] = statistics.geometric_mean(ratios)
    pairs = (line.variants for line in lines if AS_SERVED in line.variants)
    if served := [variants[AS_SERVED] / variants[AFTER_BASE] for variants in pairs]:
        found[f"{AS_SERVED}: geometric mean of the time over the other order"] = statistics.geometric_mean(
            served
        )
        found[f"{AS_SERVED}: most of that"] = max(served)
    speedups = [line.speedup for line in lines if line.speedup]
    if speedups:
        found["speed-up over the fastest peer, geometric mean"] = statistics.geometric_mean(speedups)
        found["speed-up over the fastest peer, least"] = min(speedups)
    return found


def markdown(
    part: str,
    facts: dict[str, Any],
    found: dict[str, float | None],
    lines: list[Line],
    machine: Machine,
) -> str:
    text = [f"# Segmented LoRA product: {part}", ""]
    text += [f"- {name}: {value}" for name, value in facts.items()]
    text += [
        f"- copy {machine.bandwidth / 1e12:.2f} TB/s, matrix product {machine.arithmetic / 1e12:.0f} TFLOP/s"
    ]
    text += ["", "| what | |", "|---|---|"]
    text += [f"| {name} | {value:.2f} |" for name, value in found.items() if value is not None]
    others = list(dict.fromkeys(name for line in lines for name in (*line.peers, *line.variants)))
    head = ["module", "rows", "adapters", "rank", "shrink us", "share", "expand us", "share", "both us"]
    head += ["adapter GB/s", *[f"{name} us" for name in others]]
    text += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for line in lines:
        cell, ours = line.cell, line.ours
        words = [cell.module, str(cell.rows), str(cell.adapters), cell.rank]
        for phase in ("shrink", "expand"):
            words += [f"{ours[phase]:.2f}", f"{line.share(phase, machine):.2f}"]
        words += [f"{ours['both']:.2f}", f"{(cell.a_bytes + cell.b_bytes) / ours['both'] / 1e3:.0f}"]
        known = line.peers | line.variants
        words += [f"{known[name]:.2f}" if name in known else "" for name in others]
        text.append(f"| {' | '.join(words)} |")
    failed = sorted({f"- {name}: {why}" for line in lines for name, why in line.failed.items()})
    if failed:
        text += ["", "Not measured:", "", *failed]
    return "\n".join(text) + "\n"


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
