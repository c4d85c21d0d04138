"""`make gpu-check` as a dry run: the same code on the CPU with a tiny model."""

from __future__ import annotations

import json
import lzma
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


STRAY = (
    "import subprocess, sys, time; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True)"
)
HERE = """
import os, sys
from benchmarks.gpu.process_group import run_group
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


CUT_OFF = """
import sys
from pathlib import Path
from benchmarks.gpu.machine import CheckError, Machine
from benchmarks.gpu.part import limit
machine = Machine(Path(sys.argv[1]), Path(sys.argv[1]), dry=True)
limit(2)
try:
    machine.python("-c", "import time; print('a FAILED'); print('b' * 9000, flush=True); time.sleep(60)")
except CheckError as error:
    print(error)
"""


def test_what_is_cut_off_tells_how_far_it_came(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CUT_OFF, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    why, failed, end = done.stdout.split("\n", 2)
    assert (why, failed) == ("not done within 2 s", "a FAILED"), done.stderr
    assert set(end.strip()) == {"b"}


LAY = """
import sys
from pathlib import Path
from benchmarks.gpu.carried import lay
for name in ("none.xz", "tool.xz", "files.tar.xz"):
    lay(Path(sys.argv[1], name), Path(sys.argv[1], name.partition(".")[0]))
"""


def test_what_is_brought_lies_there_until_something_else_is(tmp_path: Path) -> None:
    def bring(text: str) -> None:
        (tmp_path / "tool.xz").write_bytes(lzma.compress(f"#!/bin/sh\necho {text}\n".encode()))
        (tmp_path / text).touch()
        with tarfile.open(tmp_path / "files.tar.xz", "w:xz") as archive:
            archive.add(tmp_path / text, f"below/{text}")

    def lay() -> tuple[str, list[str]]:
        subprocess.run([sys.executable, "-c", LAY, tmp_path], cwd=ROOT, check=True)
        said = subprocess.run([tmp_path / "tool"], capture_output=True, text=True, check=True).stdout.strip()
        return said, sorted(path.name for path in tmp_path.glob("files/below/*"))

    bring("first")
    assert lay() == ("first", ["first"])
    (tmp_path / "files" / "below" / "kept").touch()
    assert lay() == ("first", ["first", "kept"])
    bring("second")
    assert lay() == ("second", ["second"])
    assert not (tmp_path / "none").exists()


# Not `correctness`, `smollm2` and `ranks-nccl`, which on a CPU run tests that run anyway, nor `peers`, which
# has one of its own.
PARTS = [
    "kernels",
    "sanitizer",
    "decode",
    "prefill",
    "variants",
    "model",
    "distinct",
    "ranks",
    "popular",
    "host",
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dry_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", *PARTS, "--dry-run"]
    command += ["--work", tmp_path / "work", "--out", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert list(found) == PARTS and all(part["passed"] and part["rows"] for part in found.values())
    assert [row["unit"] for row in found["distinct"]["rows"]] == ["tok/s", "tok/s"]
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in found["distinct"]["rows"])
    assert found["distinct"]["facts"]["command"] == "make gpu-check PART=distinct DRY_RUN=1"
    text = (tmp_path / "gpu-check.md").read_text()
    assert all(f"## {part}: passed" in text for part in PARTS)
