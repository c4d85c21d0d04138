"""The libraries of the CUDA backend on a device that is not there: our kernels under emulation, FlashInfer by
its stand-in."""

import ctypes
from types import SimpleNamespace
from typing import Any

from flashinfer_stand_in import LIBRARY
from pretended_tensor import PretendedDevice, kept
from torch.utils._python_dispatch import _disable_current_modes


class OurKernels:
    """An emulated library. What its launchers are given is recorded where a capture is under way."""

    def __init__(self, library: ctypes.CDLL, device: PretendedDevice) -> None:
        self._library, self._device = library, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def lorikeet_sgmv(self, call: ctypes.Structure, stream: int) -> bytes | None:
        return self._launch(self._library.lorikeet_sgmv, call)

    def lorikeet_rope_and_cache(self, call: ctypes.Structure, stream: int) -> bytes | None:
        return self._launch(self._library.lorikeet_rope_and_cache, call)

    def lorikeet_gated(self, call: ctypes.Structure, stream: int) -> bytes | None:
        return self._launch(self._library.lorikeet_gated, call)

    def lorikeet_add_norm(self, call: ctypes.Structure, stream: int) -> bytes | None:
        return self._launch(self._library.lorikeet_add_norm, call)

    def _launch(self, launcher: Any, call: ctypes.Structure) -> bytes | None:
        same = type(call).from_buffer_copy(call)
        error: bytes | None = self._device.launch(launcher, same, None)
        return error


def flashinfer(device: PretendedDevice) -> SimpleNamespace:
    """The stand-in for FlashInfer, called with tensors of `device`."""

    def kernels(module: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(**{
            name: lambda *args, kernel=kernel, **kwargs: device.launch(kernel, *args, **kwargs)
            for name, kernel in vars(module).items()
        })  # fmt: skip

    def wrappers(of: type) -> type:
        class Wrapper:
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self._wrapped = self._outside(of, *args, **kwargs)

            def reset_workspace_buffer(self, *args: Any) -> None:
                self._outside(self._wrapped.reset_workspace_buffer, *args)

            def plan(self, *args: Any, **kwargs: Any) -> None:
                assert device.tape is None, "a capture would not plan again"
                self._outside(self._wrapped.plan, *args, **kwargs)

            def run(self, *args: Any, **kwargs: Any) -> None:
                device.launch(self._wrapped.run, *args, **kwargs)

            @staticmethod
            def _outside(call: Any, *args: Any, **kwargs: Any) -> Any:
                with _disable_current_modes():
                    return call(*kept(args), **kept(kwargs))

        return Wrapper

    modules = {
        name: kernels(module) for name, module in vars(LIBRARY).items() if not isinstance(module, type)
    }
    return SimpleNamespace(
        BatchPrefillWithPagedKVCacheWrapper=wrappers(LIBRARY.BatchPrefillWithPagedKVCacheWrapper),
        BatchDecodeWithPagedKVCacheWrapper=wrappers(LIBRARY.BatchDecodeWithPagedKVCacheWrapper),
        **modules,
    )
