"""`torch.cuda` of a device that is not there. Whatever is called for has been done when the call returns."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretended_tensor import DEVICE, PretendedDevice
from tape import Tape

MEMORY = 1 << 30


class Event:
    device = DEVICE

    def record(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True


class Stream:
    cuda_stream = 0

    def __init__(self, device: Any = None) -> None: ...
    def wait_event(self, event: Event) -> None: ...
    def wait_stream(self, stream: "Stream") -> None: ...


class Graph:
    tape: Tape

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    def replay(self) -> None:
        self.tape.replay()


@contextlib.contextmanager
def pretended_cuda(patch: pytest.MonkeyPatch) -> Iterator[PretendedDevice]:
    """Within, this thread has one CUDA device of the kind sm_90."""
    device, stream = PretendedDevice(), Stream()

    @contextlib.contextmanager
    def graph(
        made: Graph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        made.tape = device.tape = Tape()
        try:
            yield
        finally:
            device.tape = None

    def set_sync_debug_mode(mode: str) -> None:
        device.waiting = mode != "error"

    stand_ins = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": graph,
        "set_sync_debug_mode": set_sync_debug_mode,
        "current_stream": lambda _=None: stream,
        "stream": contextlib.nullcontext,
        "device": contextlib.nullcontext,
        "set_device": lambda _: None,
        "synchronize": lambda _=None: None,
        "empty_cache": lambda: None,
        "get_device_capability": lambda _=None: (9, 0),
        "get_device_properties": lambda _=None: SimpleNamespace(multi_processor_count=132),
        "mem_get_info": lambda _=None: (MEMORY, MEMORY),
        "memory_allocated": lambda _=None: 0,
        "max_memory_allocated": lambda _=None: 0,
        "reset_peak_memory_stats": lambda _=None: None,
    }
    for name, stand_in in stand_ins.items():
        patch.setattr(torch.cuda, name, stand_in)
    with device:
        yield device
