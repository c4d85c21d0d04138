"""The parts that pass or fail: builds, tests, sanitizers, golden answers. Each returns rows of a table."""

from __future__ import annotations

import shutil
import time
from typing import Any
from xml.etree import ElementTree

from golden_answers import agreement
from machine import ROOT, CheckError, Machine
from scale import DRY, REAL
from support.server import Server

Rows = list[dict[str, Any]]
EXAMPLES = ROOT / "examples" / "adapters"


def correctness(machine: Machine) -> Rows:
    """Fails if a test fails or, on a GPU, if one is skipped: then it has shown nothing."""
    report = machine.work / "tests.xml"
    tests = ["server/tests", "integration-tests"]
    done = machine.python("-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", *tests, check=False)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None:
        raise CheckError(done.stdout[-6000:])
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    shown_nothing = counts["skipped"] or not counts["tests"]
    if counts["failures"] or counts["errors"] or (shown_nothing and not machine.dry):
        raise CheckError(done.stdout[-6000:])
    return [counts]


def smollm2(machine: Machine) -> Rows:
    """In float32 by the same tests as on a CPU; in 16 bits as far as an answer is beyond doubt."""
    machine.python("-m", "pytest", "-q", "-x", "integration-tests/oracle/test_served.py")
    rows: Rows = [{"dtype": "float32", "tokens": "all", "equal": "all", "worst log-probability": "< 1e-3"}]
    for dtype in ("float16", "bfloat16"):
        server = Server("smollm2", [EXAMPLES], ["--dtype", dtype], machine.environment)
        try:
            with server:
                rows.append({"dtype": dtype, **agreement(server, dtype)})
        finally:
            shutil.rmtree(server.directory)
    return rows


def model(machine: Machine) -> Rows:
    started = time.monotonic()
    directory = (DRY if machine.dry else REAL).model(machine.work)
    size = sum(path.stat().st_size for path in directory.iterdir())
    return [
        {"model": directory.name, "GB": round(size / 1e9, 2), "seconds": round(time.monotonic() - started, 1)}
    ]
