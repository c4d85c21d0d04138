"""Work beside that of the current stream."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class Beside:
    """A stream for it. Under emulation, where there are none, all is done in turn."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def begun(self) -> Iterator[Callable[[], AbstractContextManager[object]]]:
        """Yields what enters the stream. Work there comes behind all that the current one was given before
        this, and before what it is given afterwards."""
        stream = self._stream
        if stream is None:
            yield nullcontext
            return
        current = torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        yield lambda: torch.cuda.stream(stream)
        current.wait_stream(stream)
