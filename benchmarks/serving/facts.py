"""What a reader must know to weigh the figures: machine, versions, commit, load."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def accelerator() -> dict[str, str]:
    """The GPU, what drives it and what compiles for it; nothing without one."""
    if not torch.cuda.is_available():
        return {}
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return {
        "gpu": f"{line(query)}, {torch.cuda.get_device_properties(0).multi_processor_count} multiprocessors",
        "cuda": f"{torch.version.cuda} in torch, {line(['nvcc', '--version'], -1)}",
    }


def line(command: list[str], index: int = 0) -> str:
    """A line of what a command prints; empty if it cannot be run."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    except OSError:
        return ""
    return lines[index].strip() if lines else ""


def facts(peers: str, command: str) -> dict[str, str]:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft")
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        **accelerator(),
        "versions": f"{versions}, Python {platform.python_version()}",
        "commit": line(["git", "describe", "--always", "--dirty"]),
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
        "peers": peers,
        "command": command,
    }
