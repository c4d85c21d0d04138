"""Steps of the shard alone: how long a decode takes with two in flight, how much of that kernels run, and how
long prompts take.

    python -m benchmarks.gpu.step_profile --model DIR --adapter-root DIR --adapters 0 1 64 --device cuda

Prints one JSON object, by number of adapters: DIR/adapter-0000 and so on are used in turn. The step is the
shard's own, driven as its tests drive it. On a CPU the host is the device: all of its time counts as kernels.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from lorikeet_server.config import (
    MAX_LORA_RANK,
    Device,
    Dtype,
    GroupConfig,
    ServeConfig,
    prepare_threads,
)

THREADS = prepare_threads(0)  # before torch is imported

import torch  # noqa: E402
from shard_driver import BLOCK, Driver, Run, prompt_of, warmup_request  # noqa: E402
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from lorikeet_server.engine.engine import Engine  # noqa: E402
from lorikeet_server.engine.result import PendingResult  # noqa: E402
from lorikeet_server.pb import shard_pb2 as pb  # noqa: E402
from lorikeet_server.service.load import load_engine  # noqa: E402

IN_FLIGHT = 2
STEP_TOKENS = 4096  # as the server's on a GPU
WARM, TIMED, PROFILED = 10, 100, 20


def open_engine(arguments: argparse.Namespace, scratch: Path) -> Engine:
    config = ServeConfig(
        model_path=arguments.model,
        model_id=str(arguments.model),
        uds_path=scratch / "socket",
        dtype=Dtype.BFLOAT16,
        device=Device(arguments.device),
        adapter_roots=(arguments.adapter_root,),
        store_dir=scratch / "store",
        disk_bytes=0,
        max_lora_rank=MAX_LORA_RANK,
        threads=THREADS,
        group=GroupConfig.from_environment({}),
    )
    return load_engine(config, broken=sys.exit)


def ready(engine: Engine, arguments: argparse.Namespace) -> Driver:
    """With room for all sequences, and every adapter in its slot."""
    length = arguments.prompt + WARM + TIMED + PROFILED + 1
    blocks, slots = arguments.streams * (length // BLOCK + 1), max(arguments.adapters)
    sizes = {
        "max_sequences": arguments.streams,
        "max_step_tokens": max(arguments.prompt, min(arguments.streams * arguments.prompt, STEP_TOKENS)),
        "adapter_slots": max(slots, 1),
        "kv_bytes": blocks * BLOCK * engine.kv_shape.bytes_per_token,
        "max_sequence_tokens": length,
    }
    engine.warmup(warmup_request(**sizes))
    driver = Driver(engine, blocks)
    moves = []
    for slot in range(slots):
        [*_, fetched] = engine.library.fetch("local", f"adapter-{slot:04d}", 0)
        engine.library.stage(fetched.digest)
        moves.append(pb.AdapterMove(slot=slot, digest=fetched.digest))
    driver.execute(pb.Step(moves=moves))
    return driver


def prompts(driver: Driver, arguments: argparse.Namespace, adapters: int) -> tuple[list[Run], float]:
    """All sequences, each with the next of the adapters, and the seconds that their prompts took, as many of
    them in a step as it may have tokens."""
    runs, at_once = [], max(STEP_TOKENS // arguments.prompt, 1)
    started = time.perf_counter()
    for first in range(0, arguments.streams, at_once):
        step = pb.Step()
        for slot in range(first, min(first + at_once, arguments.streams)):
            prompt, adapter = prompt_of(arguments.prompt, slot, 30_000), slot % adapters if adapters else -1
            runs.append(driver.admit(step, slot, prompt, adapter_slot=adapter))
            driver.prefill(step, runs[-1])
        driver.execute(step)
    return runs, time.perf_counter() - started


def release(driver: Driver, runs: list[Run]) -> None:
    driver.release(*runs)
    for run in runs:
        driver.free.extend(run.blocks)


def measured(driver: Driver, arguments: argparse.Namespace, adapters: int) -> dict[str, float]:
    """With so many adapters in every step, in milliseconds."""
    runs, _ = prompts(driver, arguments, adapters)  # once before: libraries choose on their first call
    release(driver, runs)
    runs, seconds = prompts(driver, arguments, adapters)
    decode(driver, runs, WARM)
    step = decode(driver, runs, TIMED)
    kernels = busy(driver, runs) if arguments.device == "cuda" else step
    release(driver, runs)
    return {"step_ms": 1e3 * step, "kernel_ms": 1e3 * kernels, "prompts_ms": 1e3 * seconds}


def decode(driver: Driver, runs: list[Run], steps: int) -> float:
    """Seconds per step."""
    flying: deque[PendingResult] = deque()
    started = time.perf_counter()
    for number in range(steps):
        step = pb.Step(id=number)
        driver.decode(step, *runs)
        flying.append(driver.engine.launch(step))
        if len(flying) == IN_FLIGHT:
            driver.file(flying.popleft().wait())
    while flying:
        driver.file(flying.popleft().wait())
    return (time.perf_counter() - started) / steps


def busy(driver: Driver, runs: list[Run]) -> float:
    """Seconds per step in which the GPU runs anything; kernels side by side count once."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        decode(driver, runs, PROFILED)
    events = (event.time_range for event in profiled.events() if event.device_type == DeviceType.CUDA)
    total = end = 0.0
    for start, stop in sorted((event.start, event.end) for event in events):
        total += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return total / 1e6 / PROFILED  # from microseconds


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter-root", type=Path, required=True)
    parser.add_argument(
        "--adapters", type=int, nargs="+", default=[0], help="numbers of adapters: each is measured"
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.adapter_root.parent) as scratch:
        driver = ready(open_engine(arguments, Path(scratch)), arguments)
        found = {count: measured(driver, arguments, count) for count in arguments.adapters}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
