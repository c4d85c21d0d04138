"""Measures what the README shows. Needs `make setup`; start peers yourself and name them
(benchmarks/README.md).

    .venv/bin/python -m benchmarks.serving --peer 'llama-server F32=llama-server@http://127.0.0.1:8081'
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from support.server import Server

from benchmarks import ROOT
from benchmarks.serving import report, scenarios
from benchmarks.serving.facts import facts
from benchmarks.serving.load import Target
from benchmarks.serving.scenarios import Bench

MODEL = "smollm2"
GROUPS = {
    "peft": scenarios.against_peft,
    "retention": scenarios.retention,
    "limit": scenarios.share_of_limit,
    "many": scenarios.many_adapters,
    "popular": scenarios.popular_adapters,
}


def peer(text: str) -> Target:
    name, _, place = text.partition("=")
    api, _, url = place.partition("@")
    url, _, base = url.partition("#")
    if not url.startswith("http"):
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=API@URL or NAME=API@URL#BASE-MODEL")
    return Target(name, url, api, base)


def make_adapters(out: Path, count: int, seed: int) -> Path:
    script = ROOT / "examples" / "make_adapters.py"
    options = [
        "--out",
        out,
        "--count",
        count,
        "--ranks",
        8,
        "--targets",
        "q_proj,k_proj,v_proj,o_proj",
        "--seed",
        seed,
    ]
    subprocess.run(
        [str(word) for word in (sys.executable, script, *options)], check=True, stdout=subprocess.DEVNULL
    )
    return out


def export_model(out: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "lorikeet_server.weights.export",
        "--model",
        MODEL,
        "--out",
        str(out),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def unseen(root: Path, count: int) -> Iterator[str]:
    for index in range(count):
        yield f"cold/{(root / f'adapter-{index:04d}').name}"


def told(rows: Iterable[report.Row]) -> list[report.Row]:
    """The rows, each printed when it is there."""
    kept = []
    for row in rows:
        print(f"{row.what}: {row.ratio:.2f} ({row.ours:.4g} / {row.peer:.4g} {row.unit})", flush=True)
        kept.append(row)
    return kept


def measure(arguments: argparse.Namespace, work: Path) -> list[report.Row]:
    with_server = [name for name in arguments.only if name != "router"]
    rows = measure_server(arguments, with_server, work) if with_server else []
    if "router" in arguments.only:
        rows += told(scenarios.router_alone(arguments.runs))
    return rows


def measure_server(arguments: argparse.Namespace, names: list[str], work: Path) -> list[report.Row]:
    adapters = make_adapters(
        work / "roots" / "known", 1000 if {"many", "popular"} & set(names) else 50, seed=0
    ).rename(work / "adapters")
    cold = make_adapters(work / "cold-root" / "cold", 20 * arguments.runs, seed=1)
    options = ["--dtype", arguments.dtype, "--max-active-adapters", "64", "--disable-prefix-cache"]
    rows: list[report.Row] = []
    with Server(MODEL, [adapters, cold.parent], options) as server:
        bench = Bench(
            ours=Target("Lorikeet", server.url),
            model_id=MODEL,
            dtype=arguments.dtype,
            peers={target.name: target for target in arguments.peer},
            model=export_model(work / "model"),
            adapters=adapters,
            runs=arguments.runs,
            threads=os.cpu_count() or 1,
        )
        groups = {
            "servers": scenarios.against_servers,
            **GROUPS,
            "cold": lambda b: scenarios.cold_adapters(b, unseen(cold, 20 * b.runs)),
        }
        for name in names:
            rows += told(groups[name](bench))
    return rows


def main() -> None:
    names = ["servers", *GROUPS, "cold", "router"]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer",
        type=peer,
        action="append",
        default=[],
        help="NAME=API@URL[#BASE-MODEL], API: llama-server or openai",
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--dtype", default="auto", help="as `lorikeet serve` takes it")
    parser.add_argument("--runs", type=int, default=3)
    machine = torch.backends.cpu.get_cpu_capability().lower()
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks" / "results" / f"serving-{machine}",
        help="without extension: .md, .json and .svg are written",
    )
    arguments = parser.parse_args()
    about = facts(
        ", ".join(f"{target.name} ({target.api})" for target in arguments.peer) or "transformers + PEFT only",
        " ".join(["python -m benchmarks.serving", *sys.argv[1:]]),
    )
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lorikeet-bench-")))
        rows = measure(arguments, work)
    report.write(rows, about, arguments.out)
    print(report.markdown(rows, about))


if __name__ == "__main__":
    main()
