"""The CUDA sources compile for every architecture that is supported, and the decode kernels spill no
register.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lorikeet_server.kernels

HERE = Path(__file__).parent
SOURCES = Path(lorikeet_server.kernels.__file__).parent / "csrc" / "cuda"
ENVIRONMENTS = HERE.parents[3] / ".venvs"


@pytest.fixture(scope="module")
def toolkit() -> Path:
    """nvcc and its headers from PyPI, all of one minor version, kept between runs."""
    lock = HERE / "nvcc.txt"
    target = ENVIRONMENTS / f"nvcc-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    if not (target / "done").exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--require-hashes",
            "--target",
            target,
            "-r",
            lock,
        ]
        subprocess.run(pip, check=True)
        (target / "done").touch()
    return target / "nvidia" / "cu13"


def test_sgmv_compiles_without_spills(toolkit: Path, tmp_path: Path) -> None:
    command = [
        toolkit / "bin" / "nvcc",
        "-std=c++17",
        "-O3",
        "-I",
        toolkit / "include",
        "-Xptxas",
        "-v",
        "-Xcompiler",
        "-fPIC",
        "-gencode",
        "arch=compute_80,code=sm_80",
        "-gencode",
        "arch=compute_90,code=sm_90",
        "-gencode",
        "arch=compute_90,code=compute_90",
        "-c",
        SOURCES / "sgmv.cu",
        "-o",
        tmp_path / "sgmv.o",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = re.findall(
        r"Compiling entry function '(\S+)' for '(sm_\d+)'.*?(\d+) bytes spill stores", done.stderr, re.DOTALL
    )
    assert len(report) == 16, done.stderr  # four kernels, two formats, two architectures
    assert {architecture for _, architecture, _ in report} == {"sm_80", "sm_90"}
    assert [name for name, _, spilled in report if int(spilled)] == []
