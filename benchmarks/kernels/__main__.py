"""`python -m benchmarks.kernels [--json FILE]`: the CPU kernels beside torch's own, in milliseconds per step.

SmolLM2-135M shapes. All candidates of a row run in turn in one process with the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.kernels.model import FFN, HEADS, HIDDEN, LINEARS, WIDTH, Model, lora_loop, step
from benchmarks.kernels.timing import Timing, measure
from benchmarks.serving.facts import processor
from lorikeet_server.kernels import DecoderSpec, Kernels, LinearMode, LoraSegments, select

BATCHES = (1, 4, 8, 16, 64)
ADAPTERS, RANK, CONTEXT = 8, 8, 100
Candidates = dict[str, Callable[[], object]]
Weight = TypeVar("Weight")


def linears(model: Model, peers: list[list[object]], rows: int) -> Candidates:
    """All linears of the layers, without lm_head."""
    inputs = {width: torch.randn(rows, width) for width in (HIDDEN, FFN)}

    def each(
        layers: Sequence[Sequence[Weight]], call: Callable[[Tensor, Weight], object]
    ) -> Callable[[], object]:
        return lambda: [
            call(inputs[shape[1]], weight)
            for layer in layers
            for shape, weight in zip(LINEARS, layer, strict=True)
        ]

    return {
        "ours": each(model.packed, model.kernels.linear),
        "ours, Q4_1": each(model.quantised, model.kernels.linear),
        "F.linear float32": each(model.weights, F.linear),
        "FBGEMM float16": each(peers, torch.ops.quantized.linear_dynamic_fp16),
    }


def loras(model: Model, rows: int) -> Candidates:
    """All adapter products of a step: every row another adapter, as far as there are adapters."""
    batch = LoraSegments.build([row % ADAPTERS for row in range(rows)])
    inputs = {width: torch.randn(rows, width) for width in (HIDDEN, FFN)}
    outputs = {shape: torch.zeros(rows, shape[0]) for shape in LINEARS}

    tables = [(shape, table) for layer in model.tables for shape, table in zip(LINEARS, layer, strict=True)]
    loops = [(shape, lora_loop(table, ADAPTERS)) for shape, table in tables]
    lora = model.kernels.lora
    return {
        "ours": lambda: [lora(outputs[shape], inputs[shape[1]], table, batch) for shape, table in tables],
        "per-adapter loop": lambda: [loop(outputs[shape], inputs[shape[1]], batch) for shape, loop in loops],
    }


def attention(model: Model, reference: Kernels, rows: int) -> Candidates:
    """Decode attention of all layers over a context of 100, beside torch's SDPA over gathered pages."""
    places, q = step(rows, CONTEXT), torch.randn(rows, HEADS * WIDTH)
    layers = [layer.attention for layer in model.spec.layers]
    k_shape, v_shape = reference.kv_layout(2048, 16, 3, WIDTH, torch.float16)
    caches = torch.randn(k_shape).half(), torch.randn(v_shape).half()
    gathered = replace(layers[0], k_cache=caches[0], v_cache=caches[1])

    def ours() -> object:
        return [model.kernels.paged_attention(q, layer, places.sequences) for layer in layers]

    return {
        "ours": ours,
        "torch SDPA": lambda: [reference.paged_attention(q, gathered, places.sequences) for _ in layers],
    }


def whole_step(model: Model, rows: int) -> Candidates:
    """Layers, lm_head and arg max in the fused form, without and with a distinct adapter per row."""
    places, hidden = step(rows, CONTEXT), torch.randn(rows, HIDDEN)
    batch = LoraSegments.build([row % ADAPTERS for row in range(rows)])
    kernels = model.kernels

    def run(spec: DecoderSpec, segments: LoraSegments | None) -> Callable[[], object]:
        decoder = kernels.decoder(spec)
        assert decoder is not None
        return lambda: kernels.greedy(kernels.linear(decoder(hidden.clone(), places, segments), model.head))

    adapters = f"{ADAPTERS} adapters r{RANK}"
    return {
        "base": run(model.spec, None),
        adapters: run(model.spec, batch),
        "base, Q4_1": run(model.quantised_spec, None),
        f"{adapters}, Q4_1": run(model.quantised_spec, batch),
    }


def sections(kernels: Kernels, mode: LinearMode) -> Iterator[tuple[str, int, Candidates]]:
    """Name, rows and candidates of every line of the table."""
    model, reference = Model.make(kernels, mode, ADAPTERS, RANK), select("reference")
    peers = [[torch.ops.quantized.linear_prepack_fp16(w, None) for w in layer] for layer in model.weights]
    for rows in BATCHES:
        yield "linears", rows, linears(model, peers, rows)
        yield "lora", rows, loras(model, rows)
        yield "attention", rows, attention(model, reference, rows)
        yield "whole step", rows, whole_step(model, rows)


def show(section: str, rows: int, result: dict[str, Timing]) -> None:
    """One line: best wall time, CPU time, and each peer as a multiple of the first."""
    first = next(iter(result.values()))
    cells = [
        f"{name} {each.best:7.2f} ms (cpu {each.cpu:7.2f})"
        + ("" if each is first else f" x{each.best / first.best:.2f}")
        for name, each in result.items()
    ]
    print(f"{section:10} B={rows:<3} " + " | ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write every figure here")
    parser.add_argument("--mode", default="float16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    kernels = select("cpu", options.isa)
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    print(f"{kernels.name}, {options.mode}, {threads} threads, load {load:.1f}, torch {torch.__version__}")
    figures = []
    for section, rows, candidates in sections(kernels, options.mode):
        result = measure(candidates, options.rounds)
        show(section, rows, result)
        timings = {name: {"best": t.best, "median": t.median, "cpu": t.cpu} for name, t in result.items()}
        figures.append({"section": section, "rows": rows, "milliseconds": timings})
    if options.json:
        machine = {
            "kernels": kernels.name,
            "mode": options.mode,
            "load": load,
            "machine": processor(),
        }
        options.json.write_text(json.dumps({**machine, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
