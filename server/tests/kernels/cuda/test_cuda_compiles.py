"""The CUDA sources compile for every architecture that is supported, and no kernel spills a register."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from lock_environment import cuda_toolkit

import lorikeet_server.kernels
from lorikeet_server.kernels.cuda import abi, build

SOURCES = Path(lorikeet_server.kernels.__file__).parent / "csrc" / "cuda"
ARCHITECTURES = ("80", "90")
REPORT = re.compile(r"Compiling entry function '(\S+)' for '(sm_\d+)'.*?(\d+) bytes spill stores", re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(SOURCES.rglob("*.cu")), ids=lambda path: path.stem)
def test_compiles_without_spills(source: Path, tmp_path: Path) -> None:
    toolkit = cuda_toolkit()
    command = [toolkit / "bin" / "nvcc", "-std=c++17", "-O3", "-I", toolkit / "include"]
    command += ["-Xptxas", "-v", "-Xcompiler", "-fPIC", "-gencode", "arch=compute_90,code=compute_90"]
    for number in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    command += ["-c", source, "-o", tmp_path / "object.o"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = REPORT.findall(done.stderr)
    kernels = {name for name, _, _ in report}
    compiled = {(name, f"sm_{number}") for name in kernels for number in ARCHITECTURES}
    assert kernels and {(name, target) for name, target, _ in report} == compiled, done.stderr
    assert [(name, target) for name, target, spilled in report if int(spilled)] == []


@pytest.mark.slow
def test_the_library_links_and_loads_without_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(cuda_toolkit()))
    monkeypatch.setattr(build, "AHEAD", tmp_path / "none")
    made = build.library("90", tmp_path)
    library = abi.load(made)
    assert library.lorikeet_sgmv_scratch(abi.Tables(slices=3, in_features=4096, max_rank=16), 8) == 1536
    if not torch.cuda.is_available():
        assert library.lorikeet_load(), "CUDA's words instead of a crash"
    assert build.library("90", tmp_path) == made
