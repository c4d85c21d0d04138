"""The cheap parts of `make gpu-check`, as a dry run: the same code on the CPU with a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu", "--dry-run", "--work", tmp_path / "work", "--out", tmp_path]
    parts = ["model", "distinct"]
    done = subprocess.run([*command, *parts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert list(found) == parts and all(part["passed"] for part in found.values())
    assert [row["unit"] for row in found["distinct"]["rows"]] == ["tok/s", "tok/s"]
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in found["distinct"]["rows"])
    assert found["distinct"]["facts"]["command"] == "make gpu-check PART=distinct DRY_RUN=1"
    assert "## distinct: passed" in (tmp_path / "gpu-check.md").read_text()
