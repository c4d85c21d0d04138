"""The CUDA sources compile for every architecture that is supported, and no kernel spills a register;
FlashInfer compiles with what the extra `cuda` brings."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from lock_environment import ROOT, cuda_toolkit, environment

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
    # Four planes of 8 x 48, and their sum in 16 bits.
    assert library.lorikeet_sgmv_scratch(abi.Tables(slices=3, in_features=4096, max_rank=16), 8) == 1728
    if not torch.cuda.is_available():
        assert library.lorikeet_load(), "CUDA's words instead of a crash"
    assert build.library("90", tmp_path) == made


# The smallest of its modules that the server uses. A symbol that nothing defines, the driver's say, fails at
# once.
FLASHINFER = """
import ctypes, os
from lorikeet_server.kernels.cuda import toolkit
from lorikeet_server.kernels.cuda.flashinfer_library import prepare
prepare(toolkit.find())
from flashinfer.jit import gen_act_and_mul_module
module = gen_act_and_mul_module("silu")
module.build(verbose=False)
ctypes.CDLL(str(module.get_library_path()), mode=os.RTLD_NOW)
print(module.get_library_path())
"""


@pytest.mark.slow
def test_flashinfer_compiles_links_and_loads_without_a_device(tmp_path: Path) -> None:
    installed = environment(ROOT / "requirements" / "cuda.txt")
    # Its torch, and so cuBLAS's headers, are ours.
    paths = [str(ROOT / "server"), sysconfig.get_path("purelib")]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "XDG_CACHE_HOME": str(tmp_path)}
    clean = {name: value for name, value in os.environ.items() if name != "CUDA_HOME"}
    done = subprocess.run(
        [installed / "bin" / "python", "-c", FLASHINFER],
        env={**clean, **variables, "FLASHINFER_CUDA_ARCH_LIST": "8.0 9.0a"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(tmp_path / "lorikeet" / "kernels")
