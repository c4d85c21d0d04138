"""The whole server under load on a model with random weights: what adapters cost, and many of them."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.server import Server

from benchmarks import ROOT
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.scale import Scale
from benchmarks.serving.load import Load, Target
from benchmarks.serving.report import Row

NAME = "Lorikeet"
GIB = 1 << 30
FIRST_START = 450.0  # seconds: FlashInfer compiles its kernels then


def random_adapters(
    machine: Machine, model: Path, out: Path, count: int, ranks: str, targets: str = "all"
) -> Path:
    options = {
        "--count": count,
        "--ranks": ranks,
        "--targets": targets,
        "--dtype": "bfloat16",
        "--model": model,
    }
    words = [str(word) for pair in options.items() for word in pair]
    machine.python(ROOT / "examples" / "make_adapters.py", "--out", out, *words)
    return out


@contextlib.contextmanager
def serving(machine: Machine, scale: Scale, adapters: Path) -> Iterator[Target]:
    """The model with the adapters below `adapters`, under their directories' names."""
    flags = {
        "--dtype": "bfloat16",
        "--max-active-adapters": scale.slots,
        "--max-batch-size": scale.streams,
        "--adapter-host-bytes": 40 * GIB,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    server = Server(
        str(scale.model(machine.large)),
        [adapters],
        [*words, "--disable-prefix-cache"],
        machine.environment,
        ready_within=FIRST_START,
        scratch=machine.large,
    )
    try:
        with server:
            yield Target(NAME, server.url)
    finally:
        shutil.rmtree(server.directory)  # the store holds a copy of every adapter


@contextlib.contextmanager
def scratch(machine: Machine) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=machine.large) as directory:
        yield Path(directory)


def measured(
    scale: Scale, target: Target, names: tuple[str, ...] = (), mix: str = "distinct"
) -> dict[str, float]:
    load = Load(scale.streams, names, mix, 3 * scale.streams, scale.prompt, scale.tokens)
    load.warm(target)
    return load.on(target, scale.runs)


def numbered(count: int, below: str = "") -> tuple[str, ...]:
    return tuple(f"{below}adapter-{index:04d}" for index in range(count))


def plural(adapters: int) -> str:
    return "1 adapter" if adapters == 1 else f"{adapters} adapters"


def distinct(machine: Machine, scale: Scale) -> Iterator[Row]:
    """Throughput while 1, 2, ... adapters on all linear layers are in every batch, beside the base model's,
    which is the mean of a run before and a run after them: clocks change as a device warms. The goals come
    from what the bytes allow.
    """
    with scratch(machine) as work:
        model = scale.model(machine.large)
        adapters = random_adapters(machine, model, work, scale.distinct[-1], str(scale.rank))
        with serving(machine, scale, adapters) as target:
            counts = (0, *scale.distinct, 0)
            rates = [measured(scale, target, numbered(count))["tokens_per_second"] for count in counts]
    base = (rates[0] + rates[-1]) / 2
    for count, rate in zip(scale.distinct, rates[1:-1], strict=True):
        goal = 0.97 if count == 1 else 0.9 * scale.retention(model, count)
        yield Row(f"adapters of rank {scale.rank}: {count} ÷ none", rate, base, "tok/s", goal)


def ranks(machine: Machine, scale: Scale) -> Iterator[Row]:
    """Ranks mixed in one batch beside the same bytes in one rank, and what few large adapters do to small."""
    half, small = scale.streams // 2, scale.mixed_ranks[0]
    mean = sum(scale.mixed_ranks) // len(scale.mixed_ranks)
    sets = {
        "mixed": ",".join(str(rank) for rank in scale.mixed_ranks),
        "equal": str(mean),
        "small": str(small),
        "rare": ",".join(str(rank) for rank in (*[small] * 19, scale.rare_rank)),
    }
    with scratch(machine) as work:
        for name, list_ in sets.items():
            random_adapters(machine, scale.model(machine.large), work / name, half, list_)
        with serving(machine, scale, work) as target:
            found = {name: measured(scale, target, numbered(half, f"{name}/")) for name in sets}
    mixed, equal = (found[name]["tokens_per_second"] for name in ("mixed", "equal"))
    yield Row(f"ranks {sets['mixed']} mixed ÷ the same bytes in rank {mean}", mixed, equal, "tok/s", 0.95)
    rare, quiet = (found[name]["itl_p99_ms"] for name in ("rare", "small"))
    yield Row(
        f"p99 between tokens, one in 20 of rank {scale.rare_rank} ÷ all of rank {small}", rare, quiet, "ms"
    )


def popular(machine: Machine, scale: Scale) -> Iterator[Row]:
    """Many more adapters than device slots, some far more wanted than others, beside one and beside as many
    as there are slots. On the attention layers only: a thousand of them on all would not fit every disk.
    """
    attention = "q_proj,k_proj,v_proj,o_proj"
    with scratch(machine) as work:
        model = scale.model(machine.large)
        adapters = random_adapters(machine, model, work, scale.known, "8", attention)
        with serving(machine, scale, adapters) as target:
            one = measured(scale, target, numbered(1), "identical")
            fitting = measured(scale, target, numbered(scale.slots), "zipf:1.0")
            many = measured(scale, target, numbered(scale.known), "zipf:1.0")
    what = f"{scale.known} adapters, Zipf 1.0, {scale.slots} slots"
    yield Row(f"{what} ÷ one adapter", many["tokens_per_second"], one["tokens_per_second"], "tok/s", 0.85)
    yield Row(
        f"{what} ÷ {scale.slots} adapters", many["tokens_per_second"], fitting["tokens_per_second"], "tok/s"
    )
    for key, name in (("ttft_p50_ms", "p50"), ("ttft_p99_ms", "p99")):
        yield Row(f"time to first token, {name}: {what} ÷ one adapter", many[key], one[key], "ms")


def host(machine: Machine, scale: Scale) -> Iterator[Row]:
    """Of the shard alone, a decode step beside its kernels, and steps with adapters beside those without;
    then a decode step between a client's tokens.
    """
    model = scale.model(machine.large)
    sizes = {
        "--model": model,
        "--streams": scale.streams,
        "--prompt": scale.prompt,
        "--device": machine.device,
    }
    words = [str(word) for pair in sizes.items() for word in pair]
    most, counts = 1 / 0.97, (0, 1, scale.distinct[-1])
    with scratch(machine) as work:
        adapters = random_adapters(machine, model, work / "adapters", counts[-1], str(scale.rank))
        counted = ["--adapter-root", str(adapters), "--adapters", *map(str, counts)]
        printed = machine.python("-m", "benchmarks.gpu.step_profile", *words, *counted).stdout.splitlines()
        found = json.loads(next(line for line in reversed(printed) if line.startswith("{")))
        none, *others = (found[str(count)] for count in counts)
        for count, step in zip(counts, (none, *others), strict=True):
            what = f"decode step, {plural(count)} ÷ its kernels"
            yield Row(what, step["step_ms"], step["kernel_ms"], "ms", most, at_most=True)
        for count, step in zip(counts[1:], others, strict=True):
            yield Row(f"decode step, {plural(count)} ÷ none", step["step_ms"], none["step_ms"], "ms")
            what = f"{scale.streams * scale.prompt} tokens of prompts, {plural(count)} ÷ none"
            yield Row(what, step["prompts_ms"], none["prompts_ms"], "ms")
        with serving(machine, scale, adapters) as target:
            between = measured(scale, target, numbered(counts[-1]))["itl_p50_ms"]
    what = f"between a client's tokens, {plural(counts[-1])} ÷ kernels"
    yield Row(what, between, others[-1]["kernel_ms"], "ms", most, at_most=True)
