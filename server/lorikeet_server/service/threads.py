"""The threads beside the event loop: one that computes, and a few that wait for files."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from lorikeet_server.config import SWITCH_SECONDS

STAGING_THREADS = 2
STAGING_NICENESS = 10


def compute_thread(threads: int) -> ThreadPoolExecutor:
    """One thread, so that steps, Warmup and resets happen in the order in which they are submitted."""

    sys.setswitchinterval(SWITCH_SECONDS)

    def initialise() -> None:
        # Both are properties of the thread, not of the process.
        torch.set_num_threads(threads)
        torch.inference_mode().__enter__()

    return ThreadPoolExecutor(1, thread_name_prefix="compute", initializer=initialise)


def staging_pool() -> ThreadPoolExecutor:
    """Threads for fetching and staging adapters, below the compute thread's priority: a decode never waits
    for a core that reads files."""

    def initialise() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), STAGING_NICENESS)

    return ThreadPoolExecutor(STAGING_THREADS, thread_name_prefix="staging", initializer=initialise)
