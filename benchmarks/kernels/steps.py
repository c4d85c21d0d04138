"""The steps that `step` compares, run for it one after the other in a process of their own.

Reads names of steps, a line each, and answers each with the milliseconds that it took, the median of a few.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import torch

from benchmarks.kernels.model import HIDDEN, Model, mixed_step, step
from benchmarks.kernels.timing import measure
from lorikeet_server.kernels import LoraSegments, StepTensors, select

ADAPTERS, RANK, ATTENTION = 50, 8, (0, 1)  # of the linears: q, k and v in one, o
ROWS, CONTEXT, PROMPT = 20, 100, 62
REPEATS = 5  # after one that finds the caches as another process left them


def steps() -> dict[str, Callable[[], object]]:
    """Layers, lm_head and arg max of 20 rows, weights as a GGUF has them, adapters on q, k, v and o."""
    kernels = select("cpu")
    model = Model.make(kernels, "float16", ADAPTERS, RANK, ATTENTION)
    decoder = kernels.decoder(model.quantised_spec)
    assert decoder is not None
    drawn = random.Random(1).choices(range(ADAPTERS), k=ROWS)

    def run(places: StepTensors, slots: list[int]) -> Callable[[], object]:
        hidden, segments = torch.randn(len(slots), HIDDEN), LoraSegments.build(slots)
        heads = torch.tensor([*range(ROWS - 1), len(slots) - 1])  # whose next token is asked for
        return lambda: kernels.greedy(
            kernels.linear(decoder(hidden.clone(), places, segments)[heads], model.head)
        )

    decode = step(ROWS, CONTEXT)
    mixed = mixed_step([1] * (ROWS - 1) + [PROMPT], [CONTEXT] * (ROWS - 1) + [PROMPT])
    return {
        "base": run(decode, [-1] * ROWS),
        "one": run(decode, [0] * ROWS),
        "random": run(decode, drawn),
        "distinct": run(decode, list(range(ROWS))),
        "prompt-one": run(mixed, [0] * (ROWS - 1 + PROMPT)),
        "prompt-random": run(mixed, drawn[:-1] + drawn[-1:] * PROMPT),
    }


def main() -> None:
    torch.set_grad_enabled(False)
    runs = steps()
    for run in runs.values():
        run()
    print("ready", *runs, flush=True)
    for line in sys.stdin:
        name = line.strip()
        print(measure({name: runs[name]}, REPEATS)[name].median, flush=True)


if __name__ == "__main__":
    main()
