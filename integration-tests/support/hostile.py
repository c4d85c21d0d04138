"""Adapter directories that are an attack: code that waits to be run, and ways out of the adapter roots.

What would run makes `CANARY`, a file beside the roots.
"""

from __future__ import annotations

import os
import pickle
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from support import bad_adapters as bad
from support.corpus import Bad
from support.models import write_adapter

CANARY = "canary"
WEIGHTS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "adapter_model.ckpt")


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def outside(directory: Path) -> Path:
    """A good adapter beside the roots, where no request may reach."""
    return directory.parent.parent / "outside"


def pickled(directory: Path) -> bytes:
    return pickle.dumps(_Bomb(directory.parent.parent / CANARY))


def only(directory: Path, file: str) -> None:
    """An adapter whose weights are a pickle named `file`."""
    bad.without(directory, WEIGHTS)
    (directory / file).write_bytes(pickled(directory))


def without_weights(directory: Path, make: Callable[[Path], object]) -> None:
    bad.without(directory, WEIGHTS)
    make(directory / WEIGHTS)


def link(directory: Path, file: str, to: Path | None = None) -> None:
    write_adapter(directory)
    (directory / file).unlink()
    (directory / file).symlink_to(to or outside(directory) / file)


def special(kind: int) -> Callable[[Path], None]:
    """Makes a FIFO, a socket or a character device, which is /dev/zero."""
    return lambda path: os.mknod(path, kind | 0o600, os.makedev(1, 5))


def device() -> list[Bad]:
    """A device as weights, where this login may make one."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            special(stat.S_IFCHR)(Path(scratch) / "zero")
        except PermissionError:
            return []
    return [Bad("device", lambda d: without_weights(d, special(stat.S_IFCHR)), WEIGHTS)]


def beside_good_weights(directory: Path) -> None:
    """A good adapter among everything that other software would open, unpack, import or run."""
    write_adapter(directory, seed=77)
    for file in PICKLES:
        (directory / file).write_bytes(pickled(directory))
    code = f"open({str(directory.parent.parent / CANARY)!r}, 'w')\n"
    for file in ("__init__.py", "modeling_lora.py", "sitecustomize.py", "setup.py"):
        (directory / file).write_text(code)
    auto_map = '{"auto_map": {"AutoConfig": "modeling_lora.C", "AutoTokenizer": ["modeling_lora.T", null]}}'
    for file in ("config.json", "tokenizer_config.json"):
        (directory / file).write_text(auto_map)
    bad.sparse(directory / "tokenizer.json", 1 << 36)
    os.mkfifo(directory / "README.md")
    (directory / "added_tokens.json").symlink_to("/dev/zero")


HOSTILE: list[Bad] = [
    *(Bad(f"pickle{file[13:]}", lambda d, file=file: only(d, file), WEIGHTS) for file in PICKLES),
    Bad("pickle-renamed", lambda d: only(d, WEIGHTS), WEIGHTS),
    Bad("auto-map", lambda d: write_adapter(d, auto_map={"AutoConfig": "modeling_lora.C"}), "auto_map"),
    Bad(
        "base-is-a-url",
        lambda d: write_adapter(d, base_model_name_or_path="https://x.invalid/evil/base-7b"),
        "x.invalid",
    ),
    Bad("link-directory", lambda d: d.symlink_to(outside(d)), "symbolic link"),
    Bad("link-nowhere", lambda d: d.symlink_to(d.parent.parent / "nowhere"), "symbolic link"),
    Bad("link-up", lambda d: d.symlink_to(d.parent.parent), "symbolic link"),
    Bad("link-weights", lambda d: link(d, WEIGHTS), WEIGHTS),
    Bad("link-weights-nowhere", lambda d: link(d, WEIGHTS, Path("/nowhere")), WEIGHTS),
    Bad("link-config", lambda d: link(d, "adapter_config.json"), "adapter_config.json"),
    Bad(
        "hard-link",
        lambda d: without_weights(d, lambda path: path.hardlink_to(outside(d) / WEIGHTS)),
        "hard link",
    ),
    Bad("fifo", lambda d: without_weights(d, special(stat.S_IFIFO)), WEIGHTS),
    Bad("socket", lambda d: without_weights(d, special(stat.S_IFSOCK)), WEIGHTS),
    Bad("directory-as-weights", lambda d: without_weights(d, Path.mkdir), WEIGHTS),
    *device(),
]


def write_corpus(root: Path, corpus: list[Bad]) -> None:
    """Every bad adapter as `root/NAME`."""
    write_adapter(outside(root / "any"))
    for entry in corpus:
        entry.make(root / entry.name)


TRAVERSAL = [
    "/etc",
    "../x",
    "a/../../x",
    "%2e%2e/x",
    "..\\x",
    "a\0b",
    "a0.",
    "a0 ",
    "a0\u2215x",
    "/proc/self/fd/0",
    "./a0",
    "a0/../a1",
    "\r\nX: 1",
    "é",
    "a" * 65536,
    "~",
    "a0//..//a1",
    "file:///etc",
]
