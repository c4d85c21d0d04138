"""Checks Lorikeet on a machine with a GPU, torch and nvcc; neither network nor Rust is needed there.

    python3 -m benchmarks.gpu [PART ...] [--dry-run] [--seconds N] [--out DIRECTORY]

Each part takes less than eight minutes, or `--seconds`, and may be run alone. `--dry-run` runs the same code
on the CPU with a tiny model.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu.carried import CARRIED
from benchmarks.gpu.machine import SECONDS, CheckError, Machine
from benchmarks.gpu.process_group import run_group

PARTS = {
    "kernels": "compile what the server compiles",
    "correctness": "every test that needs a GPU",
    "sanitizer": "the kernels under compute-sanitizer",
    "decode": "the LoRA kernels alone, few rows",
    "prefill": "the LoRA kernels alone, many rows",
    "peers": "the LoRA kernels beside those of others",
    "variants": "the LoRA kernels launched in other ways",
    "smollm2": "a real model with real adapters, by the golden answers",
    "ranks-nccl": "the same on two GPUs, if there are two",
    "model": "write the large random model",
    "distinct": "throughput with 1 to 64 adapters in every batch",
    "ranks": "ranks mixed in one batch",
    "popular": "1,000 adapters on 64 device slots",
    "host": "the part of a step that the GPU waits for the host",
}


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorikeet"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", choices=[[], *PARTS], default=[], metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="for each part, at most (%(default)s)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results, or .gpu/dry-run")
    parser.add_argument("--work", type=Path, help="files that parts share; default: below the user's cache")
    arguments = parser.parse_args()
    dry = arguments.dry_run
    work = arguments.work or cache() / ("gpu-dry-run" if dry else "gpu-check")
    out = arguments.out or (CARRIED / "dry-run" if dry else ROOT / "benchmarks" / "results")
    if arguments.seconds < 1:
        parser.error("--seconds must be 1 or more")
    machine = Machine(work.resolve(), out.resolve(), dry, arguments.seconds)
    try:
        machine.ready()
    except CheckError as error:
        sys.exit(str(error))
    failed = []
    for name in arguments.parts or PARTS:
        print(f"{name}: {PARTS[name]}", flush=True)
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu.part",
            name,
            machine.device,
            machine.work,
            machine.out,
            machine.seconds,
        ]
        if run_group([str(word) for word in command], machine.environment):
            failed.append(name)
    print(f"results in {out}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
