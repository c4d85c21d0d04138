"""Compiles the C++ kernels into a cache outside the package, on first use.

    python -m lorikeet_server.kernels.cpu.build --ahead    # for every user of this environment

One library holds every instruction set and picks at run time, so it may be built on one machine and run on
another. Neither torch nor Python headers are needed: the library has a C interface. The key covers sources,
flags and, in a user's cache, the compiler, so an upgrade rebuilds and nothing is ever overwritten.
"""

import logging
import os
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lorikeet_server.kernels.compiled import AHEAD, BuildError, built, default_cache, digest, run

LIBRARY = "liblorikeet_cpu.so"
SOURCES = Path(__file__).parents[1] / "csrc" / "cpu"
# No contraction: a multiply and an add must round alike in every inlined copy, or a row's result would depend
# on its batch.
FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=off",
)
ISA_FLAGS = {
    "isa_avx2": ("-mavx2", "-mfma", "-mf16c"),
    "isa_avx512": (
        "-mavx2",
        "-mfma",
        "-mf16c",
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx512vnni",
    ),
}


def library(cache: Path | None = None) -> Path:
    """The compiled library, built first if it is not in the cache yet. Several processes may call at once.

    Raises `BuildError`, or `OSError` where the cache cannot be written.
    """
    ahead = AHEAD / _key() / LIBRARY
    if ahead.exists():
        return ahead
    compiler = _compiler()
    return _built(compiler, (cache or default_cache()) / _key(compiler) / LIBRARY)


def build_ahead() -> Path:
    """Builds for every user of this environment. Raises as `library` does."""
    return _built(_compiler(), AHEAD / _key() / LIBRARY)


def _compiler() -> str:
    for name in ("g++", "c++", "clang++"):
        if found := shutil.which(name):
            return found
    raise BuildError("no C++ compiler found; install g++ 11 or newer, or clang++ 14 or newer")


def _key(compiler: str | None = None) -> str:
    return digest(SOURCES, (FLAGS, sorted(ISA_FLAGS.items()), platform.machine()), compiler)


def _built(compiler: str, target: Path) -> Path:
    return built(target, "CPU", lambda output: _compile(compiler, output))


def _compile(compiler: str, output: Path) -> None:
    def to_object(source: Path) -> str:
        made = output.with_name(f"{source.stem}.o")
        flags = ISA_FLAGS.get(source.stem, ()) if platform.machine() == "x86_64" else ()
        run([compiler, *FLAGS, *flags, "-c", str(source), "-o", str(made)])
        return str(made)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(to_object, sorted(SOURCES.glob("*.cpp"))))
    run([compiler, "-shared", "-pthread", *objects, "-o", str(output)])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(build_ahead() if sys.argv[1:] == ["--ahead"] else library())
