"""A CUDA device. Steps run on the current stream; nothing here waits for it but what says so."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lorikeet_server.device.base import Array, Event, Outputs, Parcel
from lorikeet_server.device.parcel import Singly, StepParcel
from lorikeet_server.errors import DeviceError


@dataclass(frozen=True, slots=True)
class CudaEvent:
    """See `base.Event`."""

    event: torch.cuda.Event

    def wait(self) -> None:
        try:
            # A thread that was never told its device would open the first one, whichever is this rank's.
            with torch.cuda.device(self.event.device):
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
        # One for all captures: cuBLAS keeps 32 MiB for each stream that it has seen.
        self._aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Captured work shares memory, which torch takes back with the last of it: another Warmup has its own.
        self._sharing: Callable[[], torch.cuda.CUDAGraph | None] = lambda: None

    def parcel(self, size: int) -> Parcel:
        return StepParcel(size, self.where)

    def upload(self, *arrays: Array) -> tuple[torch.Tensor, ...]:
        return tuple(map(Singly(self.where).add, arrays))

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
        self._aside.wait_stream(torch.cuda.current_stream(self.where))
        with torch.cuda.stream(self._aside):
            work()
        torch.cuda.current_stream(self.where).wait_stream(self._aside)
        graph, sharing = torch.cuda.CUDAGraph(), self._sharing()
        pool = None if sharing is None else sharing.pool()
        # Other threads may pin memory meanwhile, which a capture of the whole process would forbid.
        with torch.cuda.graph(graph, pool=pool, stream=self._aside, capture_error_mode="thread_local"):
            outputs = work()
        if sharing is None:
            self._sharing = weakref.ref(graph)
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
