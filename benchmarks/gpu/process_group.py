"""A command together with everything that it starts, to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence


def run_group(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """The command's exit status. What is left of its process group is killed then, or when this process is
    told to end: a test that runs out of time leaves its server behind, on the GPU that the next part needs.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        # Not reaped yet, so that no other group can have its number.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        signal.signal(signal.SIGTERM, before)
    return status
