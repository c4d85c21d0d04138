"""The kernels stay within their memory: the tests beside this one again, under emulation and the compiler's
sanitizers. On a GPU that is compute-sanitizer's part of `make gpu-check`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_target import HERE, PREBUILT, compile_emulated

# Not of stacks, which are those of fibers. More blocks than work: they too look for what they have to do.
FLAGS = (
    "-DLORIKEET_MULTIPROCESSORS=64",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "--param",
    "asan-stack=0",
    "-g",
)
TESTS = ("sgmv", "sgmv_matrix", "after_product", "rope_and_cache", "device_tables")
# Reads a row that is not there.
BEYOND = """
from pathlib import Path
import torch
from cuda_target import emulated_library
from lorikeet_server.kernels.cuda import abi

y, delta, out = torch.ones(2, 16).half(), torch.ones(1, 16).half(), torch.ones(2, 8).half()
call = abi.Gated(rows=ROWS, width=8, format=1, activation=abi.SILU)
call.y, call.delta, call.out = y.data_ptr(), delta.data_ptr(), out.data_ptr()
assert emulated_library(Path()).lorikeet_gated(call, None) is None
"""


class Sanitized:
    """Runs Python on a library that checks what it reads and writes."""

    def __init__(self, library: Path) -> None:
        runtimes = [found(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
        # Python leaks what it keeps to its end, and torch too.
        added = {"LD_PRELOAD": ":".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0", PREBUILT: str(library)}
        self._environment = {**os.environ, **added}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=HERE, env=self._environment, capture_output=True, text=True, check=False
        )


def found(name: str) -> str:
    path = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"g++ has no {name}")
    return path


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Sanitized:
    return Sanitized(compile_emulated(tmp_path_factory.mktemp("sanitized"), *FLAGS))


@pytest.mark.slow
def test_nothing_is_read_or_written_beyond_its_end(sanitized: Sanitized) -> None:
    files = [str(HERE / f"test_{name}.py") for name in TESTS]
    done = sanitized.run("-m", "pytest", "-q", "-m", "not gpu and not slow", *files)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout and " failed" not in done.stdout


@pytest.mark.slow
def test_what_is_would_be_found(sanitized: Sanitized) -> None:
    within = sanitized.run("-c", BEYOND.replace("ROWS", "1"))
    assert within.returncode == 0, within.stderr[-4000:]
    beyond = sanitized.run("-c", BEYOND.replace("ROWS", "2"))
    assert beyond.returncode != 0 and "heap-buffer-overflow" in beyond.stderr
