"""Threads: many callers, changing thread counts, and a machine that is busy with something else."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from lorikeet_server.kernels import Kernels
from lorikeet_server.kernels.cpu.backend import CpuKernels


def test_callers_take_turns(kernels: Kernels) -> None:
    packed = kernels.pack_linear(torch.randn(640, 96), "float16")
    inputs = [torch.randn(1 + i % 5, 96) for i in range(200)]
    expected = [kernels.linear(x, packed) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: kernels.linear(x, packed), inputs))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_any_number_of_threads_gives_the_same_bits(kernels: Kernels) -> None:
    assert isinstance(kernels, CpuKernels)
    packed, x = kernels.pack_linear(torch.randn(999, 257), "bfloat16"), torch.randn(37, 257)
    try:
        results = []
        for threads in (1, 2, 5, 16, 3, 1):
            kernels.library.lk_set_threads(threads)
            results += [kernels.linear(x, packed) for _ in range(20)]
    finally:
        kernels.library.lk_set_threads(3)
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_busy_machine_does_not_stall_it(kernels: Kernels) -> None:
    """Threads of others on every core: thousands of regions finish in seconds, not in time slices each."""
    burner = "while True: pass"
    others = [subprocess.Popen([sys.executable, "-c", burner]) for _ in range(3)]
    try:
        packed, x = kernels.pack_linear(torch.randn(256, 64), "float32"), torch.randn(4, 64)
        expected = kernels.linear(x, packed)
        for _ in range(2000):
            assert torch.equal(kernels.linear(x, packed), expected)
    finally:
        for other in others:
            other.kill()
            other.wait()
