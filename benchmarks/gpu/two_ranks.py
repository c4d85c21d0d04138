"""The demo model over two GPUs and NCCL, by the golden answers: as one GPU answers them."""

from __future__ import annotations

import shutil

from checks import EXAMPLES, Rows
from golden_answers import agreement
from machine import Machine
from served import FIRST_START
from support.server import Server

COUNT = "import torch; print(torch.cuda.device_count())"


def two_ranks(machine: Machine) -> Rows:
    """In float32 by the same tests as one rank, captured decodes with their collectives among them; in
    bfloat16 as far as an answer is beyond doubt. Over gloo in a dry run.
    """
    if not machine.dry and (found := int(machine.python("-c", COUNT).stdout)) < 2:
        return [{"skipped": f"it needs two GPUs, and {found} can be seen"}]
    tests = "integration-tests/oracle/test_served.py"
    machine.python("-m", "pytest", "-q", "-x", tests, NUM_SHARD="2")
    rows: Rows = [{"dtype": "float32", "tokens": "all", "equal": "all", "worst log-probability": "< 1e-3"}]
    options = ["--dtype", "bfloat16", "--num-shard", "2"]
    server = Server("smollm2", [EXAMPLES], options, machine.environment, ready_within=FIRST_START)
    try:
        with server:
            rows.append({"dtype": "bfloat16", **agreement(server, "bfloat16")})
    finally:
        shutil.rmtree(server.directory)
    return rows
