"""`make setup` says what a machine lacks, and how to get it, before anything is fetched."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = {
    "cargo": "echo cargo 1.97.0",
    "cc": "",
    "g++": "",
    "python3": f'exec {sys.executable} "$@"',
}


def lacking(tmp_path: Path, **tools: str | None) -> tuple[int, str]:
    """Status and message on a machine with these tools; `None` for one that is not there."""
    for name in ("sh", "cut", "dirname", "head", "sed", "sort"):
        (tmp_path / name).symlink_to(shutil.which(name) or pytest.fail(name))
    for name, script in (TOOLS | tools).items():
        if script is not None:
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["sh", ROOT / "packaging" / "prerequisites.sh"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_nothing_is_lacking(tmp_path: Path) -> None:
    assert lacking(tmp_path) == (0, "")


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({"cargo": None}, "missing: cargo, 1.90 or newer: install Rust"),
        ({"cargo": "echo cargo 1.85.1"}, "missing: cargo, 1.90 or newer, not 1.85.1: "),
        ({"g++": None}, "missing: a C++ compiler: apt-get install g++"),
        ({"python3": None}, "missing: python3, 3.11 or newer: "),
        ({"python3": "case $2 in *version_info*) exit 1;; esac"}, "missing: python3, 3.11 or newer: "),
        (
            {"python3": "case $* in *ensurepip*) exit 1;; --version) echo Python 3.11.2;; esac"},
            "missing: venv of Python 3.11.2: apt-get install python3-venv",
        ),
    ],
)
def test_what_is_lacking_comes_with_its_mend(
    tmp_path: Path, tools: dict[str, str | None], message: str
) -> None:
    status, said = lacking(tmp_path, **tools)
    assert status == 1 and said.count("missing: ") == 1
    assert said.startswith(message)
