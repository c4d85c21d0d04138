"""Picks the backend, once per process, by its short name. Backends are imported only when asked for."""

import logging
from importlib import import_module

import torch

from lorikeet_server.config import KERNEL_ISA, environment
from lorikeet_server.kernels.ops import Kernels

log = logging.getLogger(__name__)

CPU = torch.device("cpu")

backends = {
    "reference": "lorikeet_server.kernels.reference.backend:ReferenceKernels",
    "cpu": "lorikeet_server.kernels.cpu.backend:CpuKernels",
    "cuda": "lorikeet_server.kernels.cuda.backend:CudaKernels",
}


def select(
    name: str = "auto",
    isa: str | None = None,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> Kernels:
    """The backend called `name`; `auto` takes the one of the device, or `reference` where that cannot be had,
    and warns.

    `isa` is the instruction set of `cpu` (`auto`, `portable`, `avx2`, `avx512`); None asks the environment.
    `dtype` is that of activations; `cpu` knows float32 only. Raises `ValueError` for an unknown name, and
    whatever the backend raises when it was asked for by name.
    """
    if isa is None:
        isa = environment().get(KERNEL_ISA, "auto")
    if name != "auto":
        return _load(name, isa, device, dtype)
    try:
        return _load(device.type, isa, device, dtype)
    except (ImportError, OSError, RuntimeError) as error:
        log.warning("no compiled kernels, falling back to torch, which is several times slower: %s", error)
        return _load("reference", isa, device, dtype)


def _load(name: str, isa: str, device: torch.device, dtype: torch.dtype) -> Kernels:
    if name not in backends:
        raise ValueError(f"unknown kernel backend {name!r}, known: {', '.join(backends)}")
    module, _, attribute = backends[name].partition(":")
    backend = getattr(import_module(module), attribute)
    kernels: Kernels = backend(isa) if name == "cpu" else backend(device, dtype)
    return kernels
