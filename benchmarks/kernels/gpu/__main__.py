"""`python -m benchmarks.kernels.gpu PART`: the segmented LoRA product on a GPU, each part below 8 minutes.

    decode    6 modules x rows 1..256 x adapters x ranks
    prefill   6 modules x rows 512..8192 x segments x ranks
    peers     some of both beside torch, vLLM and SGLang
    variants  what the overlap of launches is worth, what DoRA costs, and both beside the base product

With `--dry-run` the same program runs tiny shapes on a CPU, on kernels compiled for it; its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.kernels.gpu.bench import Bench, measure
from benchmarks.kernels.gpu.clock import Clock
from benchmarks.kernels.gpu.layers import Pool
from benchmarks.kernels.gpu.peers import look_in
from benchmarks.kernels.gpu.report import Line, write
from benchmarks.kernels.gpu.shapes import (
    Machine,
    decode_cells,
    peer_cells,
    prefill_cells,
    tiny_cells,
    variant_cells,
)
from benchmarks.serving.facts import facts
from lorikeet_server.kernels.cuda import abi
from lorikeet_server.kernels.cuda.library import open_library

PARTS = {
    "decode": decode_cells,
    "prefill": prefill_cells,
    "peers": peer_cells,
    "variants": variant_cells,
}


def show(line: Line, machine: Machine) -> None:
    cell = line.cell
    both = f"{line.ours['both']:8.2f} us {line.share('both', machine):5.2f} of the limit"
    peers = " ".join(f"| {name} {value:.2f} us" for name, value in line.peers.items())
    print(
        f"{cell.module:8} T={cell.rows:<5} A={cell.adapters:<4} r={cell.rank:14} {both} {peers}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--peers", type=Path, action="append", default=[], help="directory with vllm or sglang"
    )
    parser.add_argument(
        "--before", type=Path, help="library of an earlier commit, to be measured beside ours"
    )
    parser.add_argument("--rounds", type=int, default=100, help="replays of each graph")
    parser.add_argument("--seconds", type=float, default=420, help="after which no new cell is begun")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    look_in(options.peers)
    with tempfile.TemporaryDirectory() as scratch:
        if options.dry_run:
            from cuda_target import emulated_library

            device, library = torch.device("cpu"), emulated_library(Path(scratch))
            before = abi.load(options.before) if options.before else None
            cells, pool = list(tiny_cells()), Pool(1 << 20, torch.device("cpu"))
        else:
            device = torch.device("cuda", torch.cuda.current_device())
            library, cells = open_library(device), list(PARTS[options.part]())
            before = open_library(device, options.before.resolve()) if options.before else None
            free, _ = torch.cuda.mem_get_info(device)
            pool = Pool(min(1 << 32, free // 8), device)
        clock = Clock(device, options.rounds)
        machine, bench = clock.machine(), Bench(library, pool, clock, options.part, before)
        about = known(device) | bench.host()
        lines: list[Line] = []
        for line in measure(bench, cells, options.seconds):
            show(line, machine)
            lines.append(line)
        lines.sort(key=lambda line: cells.index(line.cell))
    print(*write(options.results, options.part, about, machine, lines), sep="\n")


def known(device: torch.device) -> dict[str, Any]:
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else "none: a dry run on a CPU, no figure means anything"
    )
    return {
        **facts(
            "torch always; vLLM and SGLang where they import",
            " ".join(["python -m benchmarks.kernels.gpu", *sys.argv[1:2]]),
        ),
        "device": name,
    }


if __name__ == "__main__":
    main()
