"""A CUDA device. Steps run on the current stream; nothing here waits for it but what says so."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorikeet_server.device.base import Array, Event, Outputs, Upload
from lorikeet_server.errors import DeviceError

ALIGNMENT = 16  # bytes; kernels read vectors of as many


@dataclass(frozen=True, slots=True)
class CudaEvent:
    """See `base.Event`."""

    event: torch.cuda.Event

    def wait(self) -> None:
        try:
            self.event.synchronize()
        except RuntimeError as error:
            raise DeviceError.of(error) from error

    def reached(self) -> bool:
        try:
            return bool(self.event.query())  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise DeviceError.of(error) from error

    def join(self) -> None:
        torch.cuda.current_stream().wait_event(self.event)


class CudaDevice:
    """See `base.Device`."""

    discrete = True

    def __init__(self, device: torch.device) -> None:
        self.where = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: Any = None  # the memory that all captured work shares

    def upload(self, *arrays: Array) -> tuple[torch.Tensor, ...]:
        return self.keep(*arrays).tensors

    def keep(self, *arrays: Array) -> Upload:
        places, size = layout(arrays)
        memory = pack(arrays, places, size).to(self.where, non_blocking=True)
        return Upload(memory, unpack(memory, places, arrays))

    def refill(self, upload: Upload, *arrays: Array) -> None:
        places, size = layout(arrays)
        upload.memory.copy_(pack(arrays, places, size), non_blocking=True)

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def copy_beside(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event | None:
        with torch.cuda.stream(self._copies):
            if after is not None:
                after.join()
            target.copy_(source, non_blocking=True)
            return self.record()

    def record(self) -> Event | None:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return CudaEvent(event)

    def capture(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        # Once before: libraries allocate and choose algorithms on their first call, which capture forbids.
        aside = torch.cuda.Stream(self.where)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self.where))
        with torch.cuda.stream(aside):
            work()
        torch.cuda.current_stream(self.where).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may pin memory meanwhile, which a capture of the whole process would forbid.
        with torch.cuda.graph(graph, pool=self._graphs, capture_error_mode="thread_local"):
            outputs = work()
        self._graphs = self._graphs or graph.pool()
        return graph.replay, outputs

    def available_bytes(self) -> int:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.where)
        return free

    def peak_bytes(self, work: Callable[[], object]) -> int:
        self.synchronize()
        before = torch.cuda.memory_allocated(self.where)
        torch.cuda.reset_peak_memory_stats(self.where)
        work()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.where) - before

    def synchronize(self) -> None:
        try:
            torch.cuda.synchronize(self.where)
        except RuntimeError as error:
            raise DeviceError.of(error) from error


def layout(arrays: tuple[Array, ...]) -> tuple[list[int], int]:
    """Where each array begins in a common buffer of bytes, and how long that is."""
    places, size = [], 0
    for array in arrays:
        places.append(size)
        size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return places, size


def pack(arrays: tuple[Array, ...], places: list[int], size: int, *, pinned: bool = True) -> torch.Tensor:
    """The arrays in one host tensor of `size` bytes. From pinned memory the copy to a device waits for
    nothing; torch uses such memory again only once the copies from it are done."""
    memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    view = memory.numpy()
    for at, array in zip(places, arrays, strict=True):
        view[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memory


def unpack(memory: torch.Tensor, places: list[int], arrays: tuple[Array, ...]) -> tuple[torch.Tensor, ...]:
    """The tensors in a packed buffer, with the shapes and dtypes of `arrays`."""
    return tuple(
        memory[at : at + array.nbytes].view(torch.from_numpy(array[:0].copy()).dtype).view(array.shape)
        for at, array in zip(places, arrays, strict=True)
    )
