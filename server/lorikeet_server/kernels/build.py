"""Compiles the C++ kernels into a cache outside the package, on first use.

    python -m lorikeet_server.kernels.build --ahead    # for every user of this environment

One library holds every instruction set and picks at run time, so it may be built on one machine and run on
another. Neither torch nor Python headers are needed: the library has a C interface. The key covers sources,
flags and, in a user's cache, the compiler, so an upgrade rebuilds and nothing is ever overwritten.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lorikeet_server.config import XDG_CACHE_HOME, environment

log = logging.getLogger(__name__)

AHEAD = Path(sys.prefix) / "share" / "lorikeet" / "kernels"  # needs no compiler where it runs
LIBRARY = "liblorikeet_cpu.so"
SOURCES = Path(__file__).parent / "csrc" / "cpu"
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
    "isa_avx512": ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}


class BuildError(RuntimeError):
    """The kernels could not be compiled; the message says what to install or shows the compiler's words."""


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/lorikeet/kernels`, or the same under `~/.cache`."""
    root = environment().get(XDG_CACHE_HOME)
    return (Path(root) if root else Path.home() / ".cache") / "lorikeet" / "kernels"


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


def _built(compiler: str, target: Path) -> Path:
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel even if this process dies
        if not target.exists():
            started = time.monotonic()
            log.info("compiling the CPU kernels, once for this machine")
            _compile(compiler, target)
            log.info("compiled the CPU kernels in %.0f s", time.monotonic() - started)
    return target


def _compiler() -> str:
    for name in ("g++", "c++", "clang++"):
        if found := shutil.which(name):
            return found
    raise BuildError("no C++ compiler found; install g++ 11 or newer, or clang++ 14 or newer")


def _key(compiler: str | None = None) -> str:
    digest = hashlib.sha256()
    version = ""
    if compiler:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest.update(repr((FLAGS, sorted(ISA_FLAGS.items()), platform.machine(), version)).encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.is_file():
            digest.update(repr((str(path.relative_to(SOURCES)), path.read_bytes())).encode())
    return digest.hexdigest()[:16]


def _compile(compiler: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:

        def to_object(source: Path) -> str:
            output = f"{scratch}/{source.stem}.o"
            flags = ISA_FLAGS.get(source.stem, ()) if platform.machine() == "x86_64" else ()
            _run([compiler, *FLAGS, *flags, "-c", str(source), "-o", output])
            return output

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(to_object, sorted(SOURCES.glob("*.cpp"))))
        linked = f"{scratch}/linked.so"
        _run([compiler, "-shared", "-pthread", *objects, "-o", linked])
        os.replace(linked, target)  # atomic: nobody ever loads half a library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{command[0]} failed with status {done.returncode}:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(build_ahead() if sys.argv[1:] == ["--ahead"] else library())
