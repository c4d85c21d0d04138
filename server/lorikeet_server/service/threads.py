"""The threads beside the event loop: one that calls for steps, one that waits for their results, some that
wait for files, a few that parse them, one that forgets them."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

# Fetches wait for other people's disks: a slow one must not take the place of another adapter's staging.
FETCHING_THREADS = 16
STAGING_THREADS = 2
NICENESS = 10


@dataclass(frozen=True, slots=True)
class Pools:
    """Who runs what: steps, Warmup and resets in order on one thread; the results of a device that works by
    itself on another; files below their priority. What is dropped makes room for what is staged, so it does
    not wait behind that."""

    compute: ThreadPoolExecutor
    results: ThreadPoolExecutor
    staging: ThreadPoolExecutor
    fetching: ThreadPoolExecutor
    dropping: ThreadPoolExecutor

    @classmethod
    def start(cls, threads: int) -> "Pools":
        """`threads`: how many the kernels use."""

        def prepare_compute() -> None:
            # Both are properties of the thread, not of the process.
            torch.set_num_threads(threads)
            torch.inference_mode().__enter__()

        return cls(
            ThreadPoolExecutor(1, "compute", prepare_compute),
            ThreadPoolExecutor(1, "results", prepare_compute),
            ThreadPoolExecutor(STAGING_THREADS, "staging", _step_back),
            ThreadPoolExecutor(FETCHING_THREADS, "fetching", _step_back),
            ThreadPoolExecutor(1, "dropping", _step_back),
        )


def _step_back() -> None:
    """Lowers this thread's priority: a decode never waits for a core that reads files."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
