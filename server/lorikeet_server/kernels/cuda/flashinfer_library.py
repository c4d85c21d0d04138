"""FlashInfer, opened: told what to compile its kernels with, and tried on the device.

It compiles each kernel on first use, with a toolkit as NVIDIA's installers lay it down. In one from PyPI the
headers of cuBLAS and cuRAND may be beside torch instead of nvcc, the runtime has its version in its name, and
there is no driver to link with.
"""

import hashlib
import logging
import os
import sys
import sysconfig
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lorikeet_server.config import CUDA_HOME
from lorikeet_server.kernels.compiled import BuildError, default_cache
from lorikeet_server.kernels.cuda import toolkit

log = logging.getLogger(__name__)

# Our calls have this release's arguments, and `attention_scratch` follows its planner: where another differs,
# steps would fail while requests are served.
RELEASE = "0.6.7"
WORKSPACE = "FLASHINFER_WORKSPACE_BASE"
EXTRA = "FLASHINFER_EXTRA_"  # flags behind its own: CFLAGS, CUDAFLAGS, LDFLAGS
# Its norms in CUDA C++, as its other kernels are. Where nvidia-cutlass-dsl is, which pip brings with it, it
# would take others, that no lock file has and no check has run.
CUDA_NORM = "FLASHINFER_USE_CUDA_NORM"


def open_flashinfer(device: torch.device, dtype: torch.dtype) -> Any:
    """The module, once one of its kernels has run on `device`; None, with a warning, if that fails, or if it
    is another release."""
    try:
        prepare(toolkit.find())
        import flashinfer

        if not f"{flashinfer.__version__}.".startswith(f"{RELEASE}."):
            raise ImportError(f"{flashinfer.__version__} is installed, and {RELEASE} wanted")
        from flashinfer.jit import env

        # Half a minute to 2.5 minutes of CPU time each (nvcc 13.2): --warmup-timeout has to cover them.
        log.info(
            "FlashInfer keeps compiled kernels in %s; those that are not there yet are compiled now and "
            "during warm-up, some minutes on a first start",
            env.FLASHINFER_JIT_DIR,
        )
        ones = torch.ones(1, 64, dtype=dtype, device=device)
        flashinfer.norm.rmsnorm(ones, ones[0], 1e-6)
    except (ImportError, OSError, RuntimeError) as error:
        log.warning(
            "no FlashInfer, torch computes attention, several times slower: %s; it comes with %s",
            error,
            toolkit.INSTALL,
        )
        return None
    return flashinfer


def prepare(
    tools: toolkit.Toolkit, cache: Path | None = None, environment: MutableMapping[str, str] = os.environ
) -> None:
    """Fills the environment that FlashInfer reads as it is imported and whenever it compiles.

    Raises `BuildError` where there is no CUDA runtime to link with, or `OSError` where the cache cannot be
    written.
    """
    parts = [tools, *toolkit.from_pypi()]
    headers = " ".join(f"-isystem {part.root / 'include'}" for part in parts)
    libraries = [path for part in parts for path in part.libraries]
    runtime = next((file for path in libraries for file in sorted(path.glob("libcudart.so*"))), None)
    if runtime is None:
        raise BuildError(f"no libcudart.so to link with in {', '.join(map(str, libraries))}")
    # What it has once written of its builds is never written again, however paths change.
    key = hashlib.sha256(repr((sys.prefix, headers, runtime)).encode()).hexdigest()[:16]
    workspace = (cache or default_cache()) / f"flashinfer-{key}"
    workspace.mkdir(parents=True, exist_ok=True)
    # It names the driver too, which its kernels that we use do not call: any library will do in its place.
    for name in ("libcudart.so", "libcuda.so"):
        with suppress(FileExistsError):
            (workspace / name).symlink_to(runtime)
    for kind, flags in (("CFLAGS", headers), ("CUDAFLAGS", headers), ("LDFLAGS", f"-L{workspace}")):
        environment[EXTRA + kind] = f"{environment.get(EXTRA + kind, '')} {flags}"
    environment.setdefault(WORKSPACE, str(workspace))
    environment.setdefault(CUDA_NORM, "1")
    environment[CUDA_HOME] = str(tools.root)
    # Where pip puts the ninja that it calls by name, also if this environment is not on the PATH.
    places = environment.get("PATH", os.defpath), sysconfig.get_path("scripts")
    environment["PATH"] = os.pathsep.join(places)
