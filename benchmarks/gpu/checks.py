"""The parts that pass or fail: builds, tests, sanitizers, golden answers. Each returns rows of a table."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lock_environment import cuda_toolkit
from support.server import Server

from benchmarks import ROOT
from benchmarks.gpu.golden_answers import agreement
from benchmarks.gpu.machine import CheckError, Machine
from benchmarks.gpu.scale import DRY, REAL
from benchmarks.gpu.served import FIRST_START

Rows = list[dict[str, Any]]
# Of the tests: what they compare with comes from the CPU, all of whose cores each process would take.
PROCESSES, THREADS = 6, 2
EXAMPLES = ROOT / "examples" / "adapters"
KERNEL_TESTS = [
    f"server/tests/kernels/cuda/test_{name}.py"
    for name in ("sgmv", "sgmv_matrix", "rope_and_cache", "after_product")
]
SANITIZED = {
    "memcheck": "test_ranks or test_input_widths or test_many_rows or test_a_mixed_batch"
    " or test_rows_may_be_parts or test_a_row_that_is_out_of_range or test_written_alone or test_add_norm",
    "racecheck": "test_input_widths or test_a_mixed_batch or test_rows_may_be_parts or test_written_alone"
    " or test_add_norm",
}


def kernels(machine: Machine) -> Rows:
    """Both libraries, as the server compiles them on first use, the CUDA one for every architecture; and on a
    GPU what later parts need of FlashInfer."""
    rows: Rows = []
    # Here nvcc comes from PyPI.
    toolkit: dict[str, Any] = {"CUDA_HOME": str(cuda_toolkit())} if machine.dry else {}
    for module in ("lorikeet_server.kernels.cpu.build", "lorikeet_server.kernels.cuda.build"):
        started = time.monotonic()
        out: list[str | Path] = ["--out", machine.work / "kernels"] if "cuda" in module else []
        library = machine.python("-m", module, *out, **toolkit).stdout.splitlines()[-1]
        seconds, size = round(time.monotonic() - started, 1), Path(library).stat().st_size >> 10
        rows.append({"library": Path(library).name, "KiB": size, "seconds": seconds})
    if not machine.dry:
        printed = machine.python("-m", "benchmarks.gpu.flashinfer_modules").stdout.splitlines()
        rows.append(json.loads(next(line for line in reversed(printed) if line.startswith("{"))))
    return rows


def sanitizer(machine: Machine) -> Rows:
    """Tests that reach every branch of the kernels, under each tool; a dry run has emulation in its place."""
    rows: Rows = []
    for tool, tests in SANITIZED.items():
        started = time.monotonic()
        place = "emulated" if machine.dry else "on_device"
        pytest = [sys.executable, "-m", "pytest", "-q", "-k", f"{place} and ({tests})", *KERNEL_TESTS]
        under = [] if machine.dry else ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        # Torch's allocator would hide an access beyond a tensor.
        done = machine.run(*under, *pytest, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        last = next(line for line in reversed(done.stdout.splitlines()) if " passed" in line)
        rows.append({"tool": tool, "tests": last, "seconds": round(time.monotonic() - started, 1)})
    return rows


def correctness(machine: Machine) -> Rows:
    """Fails if a test fails or, on a GPU, if one is skipped: then it has shown nothing."""
    report = machine.work / "tests.xml"
    report.unlink(missing_ok=True)
    # A name for each test, so that a run that is cut off tells which failed.
    pytest = ["-m", "pytest", "-v", "-ra", "--tb=short", "-m", "gpu", f"--junitxml={report}"]
    pytest += ["-n", str(PROCESSES)] if find_spec("xdist") else []
    tests = ["server/tests", "integration-tests"]
    done = machine.python(*pytest, *tests, check=False, OMP_NUM_THREADS=str(THREADS))
    if not report.exists():
        raise CheckError(done.stdout[-6000:])
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None:
        raise CheckError(done.stdout[-6000:])
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    shown_nothing = counts["skipped"] or not counts["tests"]
    if counts["failures"] or counts["errors"] or (shown_nothing and not machine.dry):
        raise CheckError(done.stdout[-6000:])
    return [counts]


def benchmark(machine: Machine, part: str) -> Rows:
    """Its figures are in a file of its own."""
    options: list[str | Path] = ["--dry-run"] if machine.dry else []
    if part == "peers" and machine.peers.is_dir():
        options += ["--peers", machine.peers]
    # The rest is for the start, the last cell, and writing the figures.
    seconds = max(machine.seconds - 30, machine.seconds // 2)
    options += ["--seconds", str(seconds), "--results", machine.out]
    machine.python("-m", "benchmarks.kernels.gpu", part, *options)
    lines = json.loads((machine.out / f"sgmv-{part}.json").read_text())["lines"]
    return [{"figures": f"sgmv-{part}.md", "shapes": len(lines)}]


def smollm2(machine: Machine) -> Rows:
    return _golden_answers(machine, ("float16", "bfloat16"), shards=1)


def ranks_nccl(machine: Machine) -> Rows:
    """Two ranks on two GPUs answer as one does, captured decodes with their collectives among the answers.
    Over gloo in a dry run."""
    count = "import torch; print(torch.cuda.device_count())"
    if not machine.dry and (found := int(machine.python("-c", count).stdout)) < 2:
        return [{"skipped": f"it needs two GPUs, and {found} can be seen"}]
    return _golden_answers(machine, ("bfloat16",), shards=2)


def _golden_answers(machine: Machine, dtypes: Sequence[str], shards: int) -> Rows:
    """In float32 by the same tests as on a CPU; in 16 bits as far as an answer is beyond doubt."""
    tests = "integration-tests/oracle/test_served.py"
    machine.python("-m", "pytest", "-q", "-x", tests, NUM_SHARD=str(shards))
    rows: Rows = [{"dtype": "float32", "tokens": "all", "equal": "all", "worst log-probability": "< 1e-3"}]
    for dtype in dtypes:
        options = ["--dtype", dtype, "--num-shard", str(shards)]
        server = Server("smollm2", [EXAMPLES], options, machine.environment, ready_within=FIRST_START)
        try:
            with server:
                rows.append({"dtype": dtype, **agreement(server, dtype)})
        finally:
            shutil.rmtree(server.directory)
    return rows


def model(machine: Machine) -> Rows:
    started = time.monotonic()
    directory = (DRY if machine.dry else REAL).model(machine.large)
    size = sum(path.stat().st_size for path in directory.iterdir())
    return [
        {"model": directory.name, "GB": round(size / 1e9, 2), "seconds": round(time.monotonic() - started, 1)}
    ]
