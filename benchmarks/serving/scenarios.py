"""The figures of the README, each a function from what runs to rows. Goals: first for AVX2, second for
AVX-512 machines.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from support.server import BINARY

from benchmarks.serving import limit
from benchmarks.serving.load import Load, Target
from benchmarks.serving.peft_peer import PeftPeer
from benchmarks.serving.report import Row
from benchmarks.serving.turns import in_turns, middle

AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
PROMPT, TOKENS = 42, 64


@dataclass(frozen=True)
class Bench:
    """What is there to measure: our server with its `--model-id` and `--dtype`, peers by name, the model as a
    directory, rank-8 adapters below `adapters`.
    """

    ours: Target
    model_id: str
    dtype: str
    peers: dict[str, Target]
    model: Path
    adapters: Path
    runs: int
    threads: int

    def names(self, count: int) -> tuple[str, ...]:
        return tuple(f"adapter-{index:04d}" for index in range(count))


def rate(bench: Bench, target: Target, load: Load) -> float:
    load.warm(target)
    return load.on(target, bench.runs)["tokens_per_second"]


def against_servers(bench: Bench) -> Iterator[Row]:
    """Eight clients on eight adapters, and on one, beside every server that was given."""
    eight, one = Load(8, bench.names(8), requests=8), Load(8, bench.names(1), "identical", requests=8)
    goals = {
        "llama-server F32": ((6, 8), None),
        "llama-server Q8_0": ((2.8, 4), (1.4, 2)),
        "vLLM CPU bf16": ((5, 5), None),
    }
    for name, target in bench.peers.items():
        distinct, same = goals.get(name, (None, None))
        ours, peer = rate(bench, bench.ours, eight), rate(bench, target, eight)
        yield Row(f"8 clients, 8 adapters ÷ {name}", ours, peer, "tok/s", distinct and distinct[AVX512])
        ours, peer = rate(bench, bench.ours, one), rate(bench, target, one)
        yield Row(f"8 clients, one adapter ÷ {name}", ours, peer, "tok/s", same and same[AVX512])


def against_peft(bench: Bench) -> Iterator[Row]:
    names = list(bench.names(8))
    ours = rate(bench, bench.ours, Load(8, tuple(names), requests=32))
    base = rate(bench, bench.ours, Load(1, requests=3))
    peer = PeftPeer(bench.model, bench.threads)
    prompt = list(range(1000, 1000 + PROMPT))
    peer_base = peer.tokens_per_second(1, prompt, TOKENS, None, bench.runs)
    peer.add([bench.adapters / name for name in names])
    peer_mixed = peer.tokens_per_second(8, prompt, TOKENS, names, bench.runs)
    yield Row("8 adapters mixed ÷ transformers + PEFT", ours, peer_mixed, "tok/s", 5)
    yield Row("one client, base ÷ transformers", base, peer_base, "tok/s", 4 if AVX512 else 2.5)


def retention(bench: Bench) -> Iterator[Row]:
    def in_turn(name: str, many: Load, few: Load, goal: float) -> Row:
        rounds = in_turns(bench.ours, bench.runs, {"many": many, "few": few}, "tokens_per_second")
        return middle(name, rounds, "many", "few", "tok/s", goal)

    for clients in (8, 16):
        base, distinct = (
            Load(clients, adapters, requests=4 * clients) for adapters in ((), bench.names(clients))
        )
        yield in_turn(f"{clients} clients, all adapters distinct ÷ base", distinct, base, 0.85)
    one = Load(20, bench.names(1), "identical", requests=100, prompt_tokens=62)
    fifty = Load(20, bench.names(50), "uniform", requests=100, prompt_tokens=62)
    yield in_turn("20 clients, 50 adapters at random ÷ one", fifty, one, 0.97)


def thousand_staged(bench: Bench) -> tuple[str, ...]:
    names = bench.names(1000)
    Load(4, names, "distinct", requests=len(names), tokens=1).on(bench.ours, 1)
    return names


def many_adapters(bench: Bench) -> Iterator[Row]:
    """One client, each request another of N staged adapters."""
    names = thousand_staged(bench)
    loads = {
        str(count): Load(1, names[:count], "distinct", requests=max(10, min(count, 40)), tokens=16)
        for count in (1, 10, 100, 1000)
    }
    rounds = in_turns(bench.ours, bench.runs, loads, "latency_p50_ms")
    for count in ("10", "100", "1000"):
        what = f"latency, {count} adapters ÷ one"
        yield middle(what, rounds, count, "1", "ms", 1.05, at_most=True)


def popular_adapters(bench: Bench) -> Iterator[Row]:
    """Twenty clients whose requests are spread over 1,000 staged adapters and 64 device slots."""
    names = thousand_staged(bench)
    loads = {
        "one": Load(20, names[:1], "identical", requests=60),
        "Zipf 1.0": Load(20, names, "zipf:1.0", requests=60),
        "at random": Load(20, names, "uniform", requests=60),
    }
    rounds = in_turns(bench.ours, bench.runs, loads, "tokens_per_second")
    for name, goal in (("Zipf 1.0", 0.85), ("at random", None)):
        what = f"20 clients, 1,000 adapters ({name}) on 64 slots ÷ one"
        yield middle(what, rounds, name, "one", "tok/s", goal)


def share_of_limit(bench: Bench) -> Iterator[Row]:
    machine, as_served = limit.measure(), limit.as_served(bench.model_id, bench.dtype)
    for batch in (1, 8, 16):
        load = Load(batch, requests=4 * batch)
        load.warm(bench.ours)
        itl = load.on(bench.ours, bench.runs)["itl_p50_ms"] / 1000
        ours = batch / itl
        for what, stored, goal in (
            ("share of the physical limit in 16 bits", limit.IN_16_BITS, 0.6),
            ("share of the limit of the bytes read", as_served, None),
        ):
            bound = batch / machine.step_seconds(batch, PROMPT + TOKENS // 2, stored)
            yield Row(f"{what}, batch {batch}", ours, bound, "tok/s", goal)


def router_alone(runs: int) -> Iterator[Row]:
    """What the router costs in front of a simulated shard, beside what is to be reached."""
    command = [str(BINARY), "bench", "router", "--json"]
    results = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(runs)
    ]

    def row(what: str, figure: str, goal: float, unit: str, at_most: bool = False) -> Row:
        ours = median(result[figure] for result in results)
        return Row(f"router alone, {what} ÷ {goal:,.0f} {unit}", ours, goal, unit, 1, at_most)

    yield row("added latency p50", "added_latency_p50_ms", 1, "ms", at_most=True)
    yield row("requests", "requests_per_second", 5000, "per second")
    yield row("streamed tokens", "streamed_tokens_per_second", 100_000, "per second")


def cold_adapters(bench: Bench, unseen: Iterator[str]) -> Iterator[Row]:
    """p99 between the tokens of four streams: quiet, while 20 adapters nobody asked for before come in, and
    while the same 20 are asked for again.

    The streams start together and outlast the arrivals, so that none of them waits for another's prompt.
    """
    streams = Load(4, bench.names(4), requests=4, tokens=600)
    streams.warm(bench.ours)
    quiet: list[float] = []
    loading: list[float] = []
    again: list[float] = []
    for _ in range(bench.runs):
        arriving = Load(1, tuple(next(unseen) for _ in range(20)), requests=20, tokens=1, prompt_tokens=1)
        quiet.append(streams.on(bench.ours, 1)["itl_p99_ms"])
        for results in (loading, again):
            arrivals = threading.Timer(1.0, arriving.on, args=(bench.ours, 1))
            arrivals.start()
            results.append(streams.on(bench.ours, 1)["itl_p99_ms"])
            arrivals.join()
    what = "p99 between tokens, 20 cold adapters ÷"
    yield Row(f"{what} quiet", median(loading), median(quiet), "ms", 1.1, at_most=True)
    yield Row(f"{what} the same requests, staged", median(loading), median(again), "ms")
