"""Picks the backend, once per process, by its short name. Backends are imported only when asked for."""

import logging
from importlib import import_module

from lorikeet_server.config import KERNEL_ISA, environment
from lorikeet_server.kernels.ops import Kernels

log = logging.getLogger(__name__)

backends = {
    "reference": "lorikeet_server.kernels.reference:ReferenceKernels",
    "cpu": "lorikeet_server.kernels.cpu:CpuKernels",
}


def select(name: str = "auto", isa: str | None = None) -> Kernels:
    """The backend called `name`; `auto` takes `cpu`, or `reference` where `cpu` cannot be built, and warns.

    `isa` is the instruction set of `cpu` (`auto`, `portable`, `avx2`, `avx512`); None asks the environment.
    Raises `ValueError` for an unknown name, and whatever the backend raises when it was asked for by name.
    """
    if isa is None:
        isa = environment().get(KERNEL_ISA, "auto")
    if name != "auto":
        return _load(name, isa)
    try:
        return _load("cpu", isa)
    except (ImportError, OSError, RuntimeError) as error:
        log.warning("no C++ kernels, falling back to torch, which is several times slower: %s", error)
        return _load("reference", isa)


def _load(name: str, isa: str) -> Kernels:
    if name not in backends:
        raise ValueError(f"unknown kernel backend {name!r}, known: {', '.join(backends)}")
    module, _, attribute = backends[name].partition(":")
    kernels: Kernels = getattr(import_module(module), attribute)(isa)
    return kernels
