"""Finds nvcc: the toolkit named by CUDA_HOME, the one on the PATH, or the one that came from PyPI."""

import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from lorikeet_server.config import CUDA_HOME, environment
from lorikeet_server.kernels.compiled import BuildError

INSTALL = (
    "pip install 'nvidia-cuda-nvcc>=13.0' nvidia-nvvm nvidia-cuda-crt nvidia-cuda-cccl nvidia-cuda-runtime"
)


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A directory with `bin/nvcc`, headers and the static runtime."""

    root: Path

    @property
    def nvcc(self) -> str:
        return str(self.root / "bin" / "nvcc")

    @property
    def flags(self) -> tuple[str, ...]:
        """Where headers and libraries are; nvcc by itself does not look where PyPI's are."""
        libraries = next(path for path in self._libraries() if (path / "libcudart_static.a").is_file())
        return ("-I", str(self.root / "include"), "-L", str(libraries))

    def missing(self) -> list[str]:
        """What a build needs and this toolkit lacks, as paths below its root."""
        needed = ["bin/nvcc", "bin/ptxas", "include/cuda_runtime.h", "include/cuda_bf16.h"]
        lacking = [path for path in needed if not (self.root / path).is_file()]
        if not any((path / "libcudart_static.a").is_file() for path in self._libraries()):
            lacking.append("lib/libcudart_static.a")
        return lacking

    def _libraries(self) -> tuple[Path, ...]:
        return self.root / "lib64", self.root / "lib"


def find() -> Toolkit:
    """The first toolkit that has all a build needs. Raises `BuildError` naming what each one lacks."""
    looked = []
    for origin, root in _candidates():
        toolkit = Toolkit(root)
        lacking = toolkit.missing()
        if not lacking:
            return toolkit
        looked.append(f"{origin} {root} has no {', '.join(lacking)}")
    found = "; ".join(looked) or f"{CUDA_HOME} is not set and nvcc is not on the PATH"
    raise BuildError(
        f"no CUDA toolkit to compile the kernels with: {found}. Set {CUDA_HOME} to CUDA 13.0 or newer, "
        f"or install it from PyPI: {INSTALL}"
    )


def _candidates() -> list[tuple[str, Path]]:
    candidates = []
    if home := environment().get(CUDA_HOME):
        candidates.append((CUDA_HOME, Path(home)))
    if nvcc := shutil.which("nvcc"):
        candidates.append(("the toolkit on the PATH,", Path(os.path.realpath(nvcc)).parents[1]))
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    candidates += [
        ("the toolkit from PyPI,", root) for root in sorted(packages.glob("cu1[3-9]"), reverse=True)
    ]
    return candidates
