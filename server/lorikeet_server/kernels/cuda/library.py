"""Opens the compiled kernels for a device."""

import ctypes
from pathlib import Path

import torch

from lorikeet_server.kernels.cuda import abi, build


def open_library(device: torch.device, path: Path | None = None) -> ctypes.CDLL:
    """The kernels for a CUDA device, compiled first if need be, or those at `path`, and loaded there: even
    their first launch may be captured. Raises `BuildError`, `OSError`, or `RuntimeError` with what CUDA says.
    """
    major, minor = torch.cuda.get_device_capability(device)
    library = abi.load(path or build.library(f"{major}{minor}"))
    with torch.cuda.device(device):
        error: bytes | None = library.lorikeet_load()
    if error is not None:
        raise RuntimeError(f"{device} does not load the CUDA kernels: {error.decode()}")
    return library
