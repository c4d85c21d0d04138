"""Compiles the FlashInfer modules that the tests and the served models of a check use, all side by side.

    python -m benchmarks.gpu.flashinfer_modules [--out FILE.tar.xz]

On first use each would be compiled by itself, some of them for a minute and more: together longer than a part
may take. Those that were brought compiled (`carried.py`) are left alone. `--out` packs them to be brought, on
a machine without the GPU if FLASHINFER_CUDA_ARCH_LIST names it. Prints one JSON object. Where FlashInfer is
not installed, torch computes attention, and there is nothing to do.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lorikeet_server.kernels.cuda import toolkit
from lorikeet_server.kernels.cuda.attention import TEMPLATES
from lorikeet_server.kernels.cuda.flashinfer_library import prepare

BF16, FP16 = torch.bfloat16, torch.float16
NO_POSITIONS = 0  # FlashInfer's PosEncodingMode.NONE
# dtype, head width, whether there are a window and a soft cap.
PROMPTS = [(BF16, 64, window, cap) for window in (False, True) for cap in (False, True)]
PROMPTS += [(BF16, 128, False, False), (FP16, 64, False, False), (FP16, 128, False, False)]
# Of few query heads for each key head; others go by the kernels for prompts, which have tensor cores.
DECODES = [(BF16, 64, False, False), (BF16, 64, True, False), (FP16, 64, False, False)]


def modules() -> Iterator[Any]:
    from flashinfer.jit import gen_act_and_mul_module
    from flashinfer.jit.attention import gen_batch_decode_module, gen_batch_prefill_module
    from flashinfer.jit.norm import gen_norm_module
    from flashinfer.jit.sampling import gen_sampling_module

    def attention(dtype: torch.dtype, width: int, window: bool, cap: bool) -> tuple[Any, ...]:
        return dtype, dtype, dtype, torch.int32, width, width, NO_POSITIONS, window, cap

    for shape in PROMPTS:
        yield gen_batch_prefill_module(TEMPLATES, *attention(*shape), False)
    for shape in DECODES:
        yield gen_batch_decode_module(*attention(*shape))
    yield from (gen_norm_module(), gen_sampling_module())
    yield from map(gen_act_and_mul_module, ("silu", "gelu_tanh"))


def pack(libraries: list[Path], out: Path) -> None:
    """NAME/NAME.so of each: how FlashInfer looks for what was compiled ahead."""
    # Much the same code, over and over: packed by the whole of it, to an eighth.
    with tarfile.open(out, "w:xz", preset=9) as archive:
        for library in libraries:
            archive.add(library, f"{library.stem}/{library.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also pack them")
    arguments = parser.parse_args()
    if find_spec("flashinfer") is None:
        if arguments.out:
            sys.exit("FlashInfer is not installed: nothing to pack")
        print(json.dumps({"library": "FlashInfer is not installed", "KiB": 0, "seconds": 0}))
        return
    prepare(toolkit.find())
    from flashinfer.jit.core import build_jit_specs

    started = time.monotonic()
    found = list(modules())
    ahead = sum(module.is_aot for module in found)
    build_jit_specs(found)
    libraries = [Path(module.get_library_path()) for module in found]
    size = sum(library.stat().st_size for library in libraries)
    row = {"library": f"{len(found)} modules of FlashInfer, {ahead} of them brought", "KiB": size >> 10}
    if arguments.out:
        pack(libraries, arguments.out)
    print(json.dumps(row | {"seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()
