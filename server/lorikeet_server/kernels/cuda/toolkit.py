"""Finds nvcc: the toolkit named by CUDA_HOME, the one from PyPI, of torch's CUDA, or the one on the PATH."""

import os
import shlex
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lorikeet_server.config import CUDA_HOME, environment
from lorikeet_server.kernels.compiled import BuildError

# What the extra `cuda` of this package asks for. By the package's name pip would find somebody else's.
EXTRA = "flashinfer-python==0.6.7.post3", "cuda-toolkit[cccl,crt,cublas,cudart,curand,nvcc,nvvm]>=13.0,<14"
INSTALL = f"pip install {shlex.join(EXTRA)}"


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
        libraries = next(path for path in self.libraries if (path / "libcudart_static.a").is_file())
        return ("-I", str(self.root / "include"), "-L", str(libraries))

    def missing(self) -> list[str]:
        """What a build needs and this toolkit lacks, as paths below its root."""
        needed = ["bin/nvcc", "bin/ptxas", "include/cuda_runtime.h", "include/cuda_bf16.h"]
        lacking = [path for path in needed if not (self.root / path).is_file()]
        if not any((path / "libcudart_static.a").is_file() for path in self.libraries):
            lacking.append("lib/libcudart_static.a")
        return lacking

    @property
    def libraries(self) -> tuple[Path, ...]:
        """Where installers, and where packages from PyPI, put libraries."""
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


def from_pypi() -> list[Toolkit]:
    """What packages from PyPI have laid down, whole or, as torch's own do, in part."""
    namespace = find_spec("nvidia")
    places = (namespace.submodule_search_locations or ()) if namespace else ()
    return [Toolkit(root) for place in places for root in sorted(Path(place).glob("cu1[3-9]"), reverse=True)]


def _candidates() -> list[tuple[str, Path]]:
    candidates = []
    if home := environment().get(CUDA_HOME):
        candidates.append((CUDA_HOME, Path(home)))
    candidates += [("the toolkit from PyPI,", found.root) for found in from_pypi()]
    if nvcc := shutil.which("nvcc"):
        candidates.append(("the toolkit on the PATH,", Path(os.path.realpath(nvcc)).parents[1]))
    return candidates
