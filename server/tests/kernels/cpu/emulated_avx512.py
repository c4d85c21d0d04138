"""The AVX-512 tiles on a processor that has only AVX2: compiled once, with the intrinsics of
`emulated_avx512.h`."""

import hashlib
from pathlib import Path

import pytest

from lorikeet_server.kernels import Kernels, select
from lorikeet_server.kernels.cpu import build

INTRINSICS = Path(__file__).with_name("emulated_avx512.h")


def flags() -> tuple[str, ...]:
    """What the tiles are compiled with instead of their instruction set's flags."""
    version = hashlib.sha256(INTRINSICS.read_bytes()).hexdigest()
    emulation = ("-include", str(INTRINSICS), f"-DLORIKEET_INTRINSICS={version}")  # the path, and its bytes
    return (*build.ISA_FLAGS["isa_avx2"], "-O1", *emulation)


def emulated_kernels() -> Kernels:
    """The C++ backend in a build of its own, which takes every processor for one with AVX-512."""
    isa_flags = {
        **build.ISA_FLAGS,
        "api": ("-D__builtin_cpu_supports(name)=true",),
        "isa_avx512": flags(),
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "ISA_FLAGS", isa_flags)
        patched.setattr(build, "FLAGS", (*build.FLAGS, "-O0"))  # the time goes into compiling
        return select("cpu", "avx512")
