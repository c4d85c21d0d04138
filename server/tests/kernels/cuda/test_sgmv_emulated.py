"""The CUDA SGMV kernels without a GPU: their sources, compiled for the CPU, over the whole matrix against
fp64.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import lorikeet_server.kernels

HERE = Path(__file__).parent
SOURCES = Path(lorikeet_server.kernels.__file__).parent / "csrc" / "cuda"


def test_kernels_under_emulation(tmp_path: Path) -> None:
    program = tmp_path / "sgmv_test"
    compile_ = ["g++", "-std=c++20", "-O2", "-I", HERE, "-I", SOURCES, HERE / "sgmv_test.cpp", "-o", program]
    subprocess.run(compile_, check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=600, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
