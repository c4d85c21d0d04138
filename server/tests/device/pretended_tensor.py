"""Tensors of a CUDA device that is not there: they say that they are on it, and are kept on the host.

What the device would refuse is refused: an operation on tensors of both, and, where the host must not wait,
reading a number or a copy that is not called for but waited for. Results are those of the host.
"""

from collections.abc import Callable
from typing import Any

import torch
from devices import waits
from tape import Tape
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
COPIES = {"aten::copy_", "aten::_to_copy"}  # between host and device, too
INDEXED = {"aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
PINNING = {"aten::pin_memory", "aten::_pin_memory"}
# Of a host's ways of attention and a device's, the one that both have.
CHOICE, PLAIN_ATTENTION = "aten::_fused_sdp_choice", 0


class OnDevice(torch.Tensor):
    """`kept` is the memory on the host; addresses are its own. `number`: it stands for a number, which
    torch would leave on the host if the device were there.
    """

    kept: torch.Tensor
    number: bool

    @staticmethod
    def __new__(cls, kept: torch.Tensor) -> "OnDevice":
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            kept.size(),
            strides=kept.stride(),
            storage_offset=kept.storage_offset(),
            dtype=kept.dtype,
            device=DEVICE,
        )
        made.kept = kept
        return made

    def data_ptr(self) -> int:
        return self.kept.data_ptr()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"{list(self.shape)} is on {DEVICE} and is no array of the host's")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func.name()} was called where no pretended device is entered")


def kept(value: Any) -> Any:
    """What is behind tensors of the device, wherever they are within `value`."""
    return tree_map(lambda each: each.kept if isinstance(each, OnDevice) else each, value)


def on_device(value: Any) -> Any:
    """Every tensor within `value` as one of the device."""
    return tree_map(lambda each: OnDevice(each) if isinstance(each, torch.Tensor) else each, value)


class PretendedDevice(TorchDispatchMode):
    """Entered by a thread, what it creates on `DEVICE` is an `OnDevice`. `waiting`: whether it may wait."""

    # As this mode torch lets a program create tensors for CUDA without a driver.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self) -> None:
        super().__init__()
        torch._C._ensureCUDADeviceGuardSet()
        self.waiting = True
        self.tape: Tape | None = None  # of what is being captured

    def launch(self, kernel: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a library's kernel with the memory behind tensors of the device."""
        args, kwargs = kept(args), kept(kwargs)

        def work() -> Any:
            with _disable_current_modes():
                return kernel(*args, **kwargs)

        out = work()
        if self.tape is not None:
            self.tape.record(work, out)
        return on_device(out)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.name().split(".")[0]
        if func._can_decompose() and name != CHOICE:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        ours = [each for each in tensors if isinstance(each, OnDevice)]
        if ours and name == CHOICE:
            return PLAIN_ATTENTION
        if name in PINNING:
            return args[0].clone()
        where = kwargs.get("device")
        here = bool(ours) if where is None else torch.device(where).type == DEVICE.type
        self._check(name, args, kwargs, tensors, leaves=bool(ours) and not here)
        options = {**kwargs, **({"device": "cpu"} if where is not None else {})}
        if options.pop("pin_memory", False) and here:
            raise RuntimeError("memory of a device cannot be pinned")
        plain_args, plain_options = kept((args, options))
        out = func(*plain_args, **plain_options)
        if self.tape is not None and ours:
            self.tape.record(lambda: func(*plain_args, **plain_options), out)
        if name == "aten::copy_":
            return args[0]
        if not here:
            return out
        changed = {id(each.kept): each for each in ours}  # in place, and so the same tensors
        made = tree_map(lambda each: changed[id(each)] if id(each) in changed else on_device(each), out)
        if name == "aten::scalar_tensor":
            made.number = True
        return made

    def _check(self, name: str, args: Any, kwargs: Any, tensors: list[torch.Tensor], *, leaves: bool) -> None:
        ours = sum(isinstance(each, OnDevice) for each in tensors)
        waiting = self.waiting and self.tape is None
        if ours and waits(name, args):
            assert waiting, f"{name} waits for the device"
        # A number may come from the host.
        theirs = [each for each in tensors if not isinstance(each, OnDevice) and each.dim() > 0]
        if ours and theirs and name not in COPIES:
            shapes = ", ".join(str(list(each.shape)) for each in theirs)
            raise RuntimeError(f"{name} takes tensors of the device and {shapes} of the host")
        if ours and name in INDEXED and getattr(args[2], "number", False):
            assert waiting, f"{name} copies a number to the device, and waits"
        if name in COPIES and (leaves or (ours and theirs)):
            called_for = kwargs.get(
                "non_blocking", args[2] if name == "aten::copy_" and len(args) > 2 else False
            )
            assert called_for or waiting, f"{name} of {list(args[0].shape)} waits for the device"
