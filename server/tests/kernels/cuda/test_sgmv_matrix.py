"""The segmented LoRA product over dtype x hidden x rank x popularity x rows against fp64, through all of the
Python path: on a GPU, and on a CPU under emulation.
"""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
import torch
from cuda_target import Target
from lora_cases import Case, check, modules, popularity

from lorikeet_server.kernels import LoraModule

DTYPES = [torch.bfloat16, torch.float16]
KINDS = ["distinct", "uniform", "zipf", "identical", "skewed", "base", "half"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matrix(target: Target, dtype: torch.dtype, kind: str) -> None:
    """Of the matrix of sizes all on a device, some under emulation."""
    hidden = (64, 264) if target.emulated else (64, 1024, 4096, 14336)
    rows = (1, 9, 33) if target.emulated else (1, 9, 64, 300)
    sizes = list(product(hidden, [(1,), (8,), (16,), (40,), (128,), (8, 16, 64, 5)], rows))
    for width, ranks, count in Random(f"{dtype} {kind}").sample(sizes, 3) if target.emulated else sizes:
        slots = [ranks[slot % len(ranks)] for slot in range(6)]
        case = Case.make(target.library, target.device, [LoraModule(width, (width, 24))], slots, dtype)
        check(case, popularity(kind, count, len(slots)))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_steps(on_device: Target, dtype: torch.dtype, kind: str) -> None:
    """As many rows as a step may have, and as many adapters as the goals are about."""
    ranks, most = [(16,), (8, 16, 64, 128)], 4096
    for shape, mix in product(modules(on_device), ranks):
        slots = [mix[slot % len(mix)] for slot in range(64)]
        case = Case.make(
            on_device.library, on_device.device, [shape], slots, dtype, max_rows=most, max_rank=128
        )
        for rows in (64, 1024, most):
            check(case, popularity(kind, rows, len(slots)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_popularity(target: Target, dtype: torch.dtype, kind: str) -> None:
    case = Case.make(target.library, target.device, modules(target), [8, 16, 64, 1, 32, 5], dtype)
    for rows in (0, 1, 7, 8, 9, 13) if target.emulated else (0, 1, 7, 8, 9, 64, 255, 256, 257, 300):
        for module in range(len(case.tables.tables)):
            check(case, popularity(kind, rows, 6), module)


@pytest.mark.parametrize("rank", [1, 4, 8, 12, 16, 24, 40, 64, 128, 256, 512])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks(target: Target, dtype: torch.dtype, rank: int) -> None:
    shape = LoraModule(64, (64, 16)) if target.emulated else LoraModule(2048, (2048, 512))
    case = Case.make(target.library, target.device, [shape], [rank, 8], dtype)
    check(case, [0, 1, 0])
    if rank <= 64 or not target.emulated:
        check(case, popularity("half", 258, 2))


@pytest.mark.parametrize(
    "hidden", [8, 256, 264, 1024, 1032, 2056, pytest.param(8200, marks=pytest.mark.slow)]
)
def test_input_widths(target: Target, hidden: int) -> None:
    """One chunk, several, and a part of one; units of one step and of many."""
    case = Case.make(target.library, target.device, [LoraModule(hidden, (24,))], [8, 20], torch.float16)
    check(case, [1, 0, -1])
    check(case, [0] * 257 if target.emulated else popularity("half", 258, 2))


@pytest.mark.parametrize("rows", [260, pytest.param(300, marks=pytest.mark.slow)])
def test_many_rows(target: Target, rows: int) -> None:
    """Blocks that take one strip of columns and several; more ranks than are kept, and fewer."""
    shapes = [LoraModule(32, (32, 8, 16)), LoraModule(40, (328,))] if target.emulated else modules(target)
    case = Case.make(target.library, target.device, shapes, [8, 136, 16])
    for kind in ("uniform", "identical"):
        for module in range(len(shapes)):
            check(case, popularity(kind, rows, 3), module)
