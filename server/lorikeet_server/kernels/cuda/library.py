"""Opens the compiled kernels for a device."""

import ctypes

import torch

from lorikeet_server.kernels.cuda import abi, build


def open_library(device: torch.device) -> ctypes.CDLL:
    """The kernels for a CUDA device, compiled first if need be. Raises `BuildError`, `OSError`."""
    major, minor = torch.cuda.get_device_capability(device)
    return abi.load(build.library(f"{major}{minor}"))
