"""Compiles the CUDA kernels for the device that is present, on first use, or ahead of time for others.

    python -m lorikeet_server.kernels.cuda.build --ahead             # for every user of this environment
    python -m lorikeet_server.kernels.cuda.build --out DIR --arch 90  # one file, for a machine like that

A library made ahead holds code for sm_80 and sm_90 and PTX for what is newer. Neither torch nor Python
headers are needed: the library has a C interface, and the CUDA runtime is linked into it.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from lorikeet_server.kernels.compiled import AHEAD, built, default_cache, digest, run
from lorikeet_server.kernels.cuda import toolkit

LIBRARY = "liblorikeet_cuda.so"
SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"
ARCHITECTURES = ("80", "90")
FLAGS = ("-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", "-cudart", "static")


def library(architecture: str, cache: Path | None = None) -> Path:
    """The library for a device of compute capability `architecture` ("90"), built first if it is not there.

    Several processes may call at once. Raises `BuildError` naming what is missing and how to get it, or
    `OSError` where the cache cannot be written.
    """
    ahead = AHEAD / _key(ARCHITECTURES) / LIBRARY
    if ahead.exists() and int(architecture) >= int(ARCHITECTURES[0]):
        return ahead
    tools = toolkit.find()
    target = (cache or default_cache()) / _key((architecture,), tools.nvcc) / LIBRARY
    return built(target, "CUDA", lambda output: _compile(tools, (architecture,), output))


def build_ahead() -> Path:
    """Builds for every user of this environment. Raises as `library` does."""
    tools = toolkit.find()
    target = AHEAD / _key(ARCHITECTURES) / LIBRARY
    return built(target, "CUDA", lambda output: _compile(tools, ARCHITECTURES, output))


def _key(architectures: Sequence[str], nvcc: str | None = None) -> str:
    return digest(SOURCES, (FLAGS, tuple(architectures)), nvcc)


def _compile(tools: toolkit.Toolkit, architectures: Sequence[str], output: Path) -> None:
    newest = max(architectures, key=int)
    targets = [f"arch=compute_{number},code=sm_{number}" for number in architectures]
    targets.append(f"arch=compute_{newest},code=compute_{newest}")
    generate = [word for target in targets for word in ("-gencode", target)]
    sources = [str(source) for source in sorted(SOURCES.glob("*.cu"))]
    run([tools.nvcc, *FLAGS, *tools.flags, *generate, *sources, "-o", str(output)])


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m lorikeet_server.kernels.cuda.build")
    parser.add_argument("--ahead", action="store_true", help="for every user of this environment")
    parser.add_argument("--out", type=Path, help=f"directory for {LIBRARY}")
    parser.add_argument("--arch", default=",".join(ARCHITECTURES), help="compute capabilities for --out")
    options = parser.parse_args()
    if options.ahead == (options.out is not None):
        parser.error("give either --ahead or --out DIR")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.ahead:
        print(build_ahead())
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        _compile(toolkit.find(), options.arch.split(","), options.out / LIBRARY)
        print(options.out / LIBRARY)


if __name__ == "__main__":
    main()
