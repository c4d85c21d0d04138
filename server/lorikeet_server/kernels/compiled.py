"""Compiled libraries in a cache outside the package: named by what they were made from, made once.

What is built ahead for every user of an environment is found without a compiler, so its name does not cover
one. Nothing is ever overwritten.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lorikeet_server.config import cache_directory

log = logging.getLogger(__name__)

AHEAD = Path(sys.prefix) / "share" / "lorikeet" / "kernels"  # needs no compiler where it runs
_SCRATCH = "tmp"


class BuildError(RuntimeError):
    """The kernels could not be compiled; the message says what to install or shows the compiler's words."""


def default_cache() -> Path:
    """Where one user's compiled kernels are kept."""
    return cache_directory() / "kernels"


def digest(sources: Path, facts: object, compiler: str | None = None) -> str:
    """A name for what is made of all files below `sources`, of `facts`, and of the compiler's version."""
    running = hashlib.sha256()
    version = run([compiler, "--version"]) if compiler else ""
    running.update(repr((facts, version)).encode())
    for path in sorted(sources.rglob("*")):
        if path.is_file():
            running.update(repr((str(path.relative_to(sources)), path.read_bytes())).encode())
    return running.hexdigest()[:16]


def built(target: Path, what: str, compile_to: Callable[[Path], None]) -> Path:
    """`target`, made first if it is not there yet. Several processes may call at once.

    `compile_to` writes the library to the path it is given, in a directory of its own. Raises `BuildError`,
    or `OSError` where the cache cannot be written.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel even if this process dies
        if not target.exists():
            started = time.monotonic()
            log.info("compiling the %s kernels, once for this machine", what)
            for left in target.parent.glob(f"{_SCRATCH}*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=target.parent) as scratch:
                compile_to(Path(scratch) / target.name)
                os.replace(Path(scratch) / target.name, target)  # atomic: nobody ever loads half a library
            log.info("compiled the %s kernels in %.0f s", what, time.monotonic() - started)
    return target


def run(command: list[str]) -> str:
    """What the command prints. Raises `BuildError` with its errors if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{command[0]} failed with status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout
