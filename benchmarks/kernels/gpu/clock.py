"""The time of a call inside a graph, as a step would see it: cold adapters, no host in between."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.kernels.gpu.layers import CALLS, Run
from benchmarks.kernels.gpu.shapes import Machine


class Clock:
    """On a GPU: a graph of `CALLS` calls over the layers, replayed after the cache was overwritten.

    On a CPU, for dry runs: wall time of a few calls.
    """

    def __init__(self, device: torch.device, rounds: int) -> None:
        self._device, self._rounds = device, rounds
        if device.type == "cuda":
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def microseconds(self, run: Run, layers: int) -> float:
        """Median of one call."""
        return self._replayed(run, layers) if self._device.type == "cuda" else self._called(run, layers)

    def machine(self) -> Machine:
        """The limits that shares refer to."""
        on_cuda = self._device.type == "cuda"
        size, side = (1 << 30, 8192) if on_cuda else (1 << 22, 256)
        # By a kernel: in a graph the copy engines would do it, which reached 2.7 of an H200's 4.3 TB/s.
        # Not of zeros: what is all the same takes less power, and could be faster.
        source = torch.randint(256, (size,), dtype=torch.uint8, device=self._device).view(torch.int32)
        target = torch.empty_like(source)
        left, right = torch.randn(2, side, side, device=self._device).to(torch.bfloat16)
        copied = self.microseconds(lambda _: torch.neg(source, out=target), 1)
        multiplied = self.microseconds(lambda _: left @ right, 1)
        return Machine(2 * size / copied * 1e6, 2 * side**3 / multiplied * 1e6)

    def _replayed(self, run: Run, layers: int) -> float:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for layer in range(layers):  # all, and on the stream of the capture: peers keep tables for both
                run(layer)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for call in range(CALLS):
                run(call % layers)
        times = []
        for _ in range(self._rounds):
            self._flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            times.append((start, end))
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in times) * 1e3 / CALLS

    def _called(self, run: Run, layers: int) -> float:
        times = []
        for call in range(3):
            started = time.perf_counter()
            run(call % layers)
            times.append((time.perf_counter() - started) * 1e6)
        return statistics.median(times)
