"""The benchmark of the LoRA product runs on tiny shapes, and torch gets the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_target import Target

ROOT = Path(__file__).parents[4]


@pytest.mark.slow
def test_dry_run(tmp_path: Path, emulated: Target) -> None:
    command = [sys.executable, "-m", "benchmarks.kernels.gpu", "peers", "--dry-run", "--results", tmp_path]
    command += ["--before", emulated.library._name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = json.loads((tmp_path / "sgmv-peers.json").read_text())["lines"]
    assert [(line["rows"], line["adapters"]) for line in lines] == [(1, 1)] * 2 + [(8, 4)] * 2 + [
        (260, 2)
    ] * 2
    for line in lines:
        assert set(line["microseconds"]) == {"both", "shrink", "expand"}
        assert set(line["variants"]) == {"both before", "shrink before", "expand before"}
        assert {"torch gather + bmm", "torch grouped_mm"} <= set(line["peers"]), line["failed"]
    assert "| tiny | 260 | 2 | mixed 8,16 |" in (tmp_path / "sgmv-peers.md").read_text()
