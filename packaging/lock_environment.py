"""Environments made from lock files, each on first use, kept beside .venv: tools and clients whose pins clash
with ours.

    python packaging/lock_environment.py requirements/nvcc.txt    # prints where it is
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".venvs"


def environment(lock: Path) -> Path:
    """The directory of the virtual environment with exactly what `lock` lists; its name is the lock's digest.

    Raises CalledProcessError if something cannot be installed.
    """
    lock = lock.resolve()
    name = "-".join(lock.relative_to(ROOT).with_suffix("").parts[-2:])
    target = ENVIRONMENTS / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    done = target / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", target], check=True)
        pip = [target / "bin" / "python", "-m", "pip", "install", "-q", "--require-hashes", "--no-deps"]
        subprocess.run([*pip, "-r", lock], check=True)
        done.touch()
    return target


def cuda_toolkit() -> Path:
    """The directory with `bin/nvcc` and `include/` of the nvcc from PyPI."""
    [toolkit] = environment(ROOT / "requirements" / "nvcc.txt").glob("lib/python*/site-packages/nvidia/cu13")
    return toolkit


if __name__ == "__main__":
    print(environment(Path(sys.argv[1])))
