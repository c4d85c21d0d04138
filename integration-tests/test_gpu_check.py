"""The cheap parts of `make gpu-check`, as a dry run: the same code on the CPU with a tiny model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


STRAY = (
    "import subprocess, sys, time; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True)"
)
HERE = """
import os, sys
sys.path.append("benchmarks/gpu")
from process_group import run_group
sys.exit(run_group([sys.executable, "-c", sys.argv[1]], os.environ))
"""


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("end", ["exit", "told to end"])
def test_a_part_leaves_nothing_behind(end: str) -> None:
    stray = STRAY + ("; sys.exit(3)" if end == "exit" else "; time.sleep(600)")
    command = [sys.executable, "-c", HERE, stray]
    runner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    child = int(runner.stdout.readline())
    if end != "exit":
        runner.terminate()
    assert runner.wait(20) == (3 if end == "exit" else 128 + signal.SIGTERM)
    deadline = time.monotonic() + 20
    while running(child):  # killed, and about to be gone
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
