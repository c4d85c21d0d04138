"""The CUDA library where kernels can run: as nvcc builds it for a device, and as g++ builds it from the same
sources for a CPU.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from lorikeet_server.kernels.cuda import abi, build

HERE = Path(__file__).parent
PREBUILT = "LORIKEET_EMULATED_LIBRARY"


@dataclass(frozen=True, slots=True)
class Target:
    """Where kernels run."""

    library: ctypes.CDLL
    device: torch.device

    @property
    def emulated(self) -> bool:
        """Then shapes have to be small."""
        return self.device.type == "cpu"


def emulated_library(directory: Path) -> ctypes.CDLL:
    """The kernels and their launchers under emulate.h; those that `PREBUILT` names, if it does."""
    prebuilt = os.environ.get(PREBUILT)
    library = abi.load(Path(prebuilt) if prebuilt else compile_emulated(directory))
    assert library.lorikeet_load() is None
    return library


def compile_emulated(directory: Path, *flags: str) -> Path:
    made = directory / "liblorikeet_cuda_emulated.so"
    command = ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", *flags]
    command += ["-DLORIKEET_EMULATE", "-I", str(HERE), "-I", str(build.SOURCES), "-x", "c++"]
    command += map(str, sorted(build.SOURCES.glob("*.cu")))
    subprocess.run([*command, "-o", str(made)], check=True)
    return made
