"""The store under pressure: budgets, pins, full disks, writers that die, and writers that meet."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import adapter_files as build
import pytest

from lorikeet_server.adapters import intake
from lorikeet_server.adapters.library import AdapterLibrary
from lorikeet_server.adapters.store import Store
from lorikeet_server.errors import NoRoomError, NotFoundError, TooLargeError


def publish(root: Path, name: str, seed: int) -> int:
    """One adapter of its own bytes; its size."""
    path = build.write(root / name, build.config(), build.safetensors(build.tensors(seed=seed)))
    return sum(file.stat().st_size for file in path.iterdir())


def names(store: Path) -> set[str]:
    return {entry.name for entry in store.iterdir()}


@pytest.fixture
def lib(tmp_path: Path) -> AdapterLibrary:
    """Room for two and a half of the adapters a, b, c, d."""
    build.library(tmp_path)
    size = max(publish(tmp_path / "root", name, seed) for seed, name in enumerate("abcd"))
    return build.library(tmp_path, disk_bytes=size * 5 // 2)


def test_the_oldest_use_goes_first(lib: AdapterLibrary, tmp_path: Path) -> None:
    a, b = build.fetch(lib, "a"), build.fetch(lib, "b")
    lib.store.open(a).__exit__(None, None, None)  # a is now younger than b
    c = build.fetch(lib, "c")
    assert names(tmp_path / "store") == {a, c}
    assert b not in names(tmp_path / "store")
    assert lib.store.used_bytes == sum(f.stat().st_size for f in (tmp_path / "store").glob("*/*"))


def test_a_disk_that_is_smaller_than_the_budget_is_the_bound(
    lib: AdapterLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, b = build.fetch(lib, "a"), build.fetch(lib, "b")
    monkeypatch.setattr(lib.store, "_budget", 0)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=16 << 10))
    c = build.fetch(lib, "c")
    assert names(tmp_path / "store") == {b, c}  # a has gone
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(NoRoomError, match=r"the disk of --store-dir"):
        build.fetch(lib, "d")


def test_the_order_of_use_outlives_a_restart(lib: AdapterLibrary, tmp_path: Path) -> None:
    a, b = build.fetch(lib, "a"), build.fetch(lib, "b")
    lib.store.open(a).__exit__(None, None, None)
    os.utime(tmp_path / "store" / b, (1, 1))
    again = AdapterLibrary(lib.model, lib.roots, Store(lib.store.directory, lib.store._budget))
    assert again.store.used_bytes == lib.store.used_bytes
    c = build.fetch(again, "c")
    assert names(tmp_path / "store") == {a, c}


def test_staged_adapters_give_way_in_the_store_and_stay_staged(lib: AdapterLibrary, tmp_path: Path) -> None:
    """A router that has more room in memory than on disk keeps them staged for ever."""
    a, b = build.fetch(lib, "a"), build.fetch(lib, "b")
    staged = lib.stage(a)
    lib.stage(b)
    c = build.fetch(lib, "c")
    assert names(tmp_path / "store") == {b, c}
    assert lib.stage(a) is staged
    lib.drop(a, from_store=False)
    with pytest.raises(NotFoundError):
        lib.stage(a)


def test_an_adapter_that_is_read_keeps_its_place(lib: AdapterLibrary, tmp_path: Path) -> None:
    a, b = build.fetch(lib, "a"), build.fetch(lib, "b")
    with lib.store.pinned(a), lib.store.pinned(b), pytest.raises(NoRoomError, match="--adapter-disk-bytes"):
        build.fetch(lib, "c")
    assert names(tmp_path / "store") == {a, b}


def test_larger_than_the_whole_store(tmp_path: Path) -> None:
    lib = build.library(tmp_path, disk_bytes=1000)
    publish(tmp_path / "root", "a", 0)
    with pytest.raises(TooLargeError, match=r"the store holds 1000 \(--adapter-disk-bytes\)"):
        build.fetch(lib, "a")
    assert names(tmp_path / "store") == set() and lib.store.used_bytes == 0


def test_a_full_disk_leaves_no_partial_file(
    lib: AdapterLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = build.fetch(lib, "a")

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(intake, "_write_all", full)
        with pytest.raises(NoRoomError, match="is full"):
            build.fetch(lib, "b")
    assert names(tmp_path / "store") == {a}
    assert lib.stage(a) is lib.stage(a)
    build.fetch(lib, "b")


def test_a_small_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "t", small]).returncode:
        pytest.skip("needs to mount a tmpfs")
    try:
        lib = build.library(tmp_path)
        lib.store, usage = Store(str(small), 0), shutil.disk_usage(tmp_path)
        publish(tmp_path / "root", "a", 0)
        publish(tmp_path / "root", "b", 1)
        wide = build.tensors([leaf for leaves in build.FUSED for leaf in leaves], rank=64)
        build.write(
            tmp_path / "root/wide", build.config(target_modules="all-linear", r=64), build.safetensors(wide)
        )
        a = build.fetch(lib, "a")
        with pytest.raises(NoRoomError, match="the disk of --store-dir"):
            build.fetch(lib, "wide")
        with monkeypatch.context() as patch, pytest.raises(NoRoomError, match="is full"):
            patch.setattr(shutil, "disk_usage", lambda _: usage)  # somebody else was faster
            build.fetch(lib, "wide")
        assert names(small) == {a}
        assert len(names(small) | {build.fetch(lib, "b")}) == 2
    finally:
        subprocess.run(["umount", small], check=True)


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
import adapter_files as build
from pathlib import Path
lib = build.library(Path({tmp!r}))
copying = lib.fetch("local", "a", 0)
next(copying), next(copying)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_writer_that_died_is_cleaned_up(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    publish(tmp_path / "root", "a", 0)
    publish(tmp_path / "root", "b", 1)
    script = KILLED.format(path=sys.path, tmp=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    (left,) = names(tmp_path / "store")
    assert left.startswith(".new-")
    living = lib.fetch("local", "b", 0)  # a writer that is not dead
    next(living)
    next(living)
    build.library(tmp_path)  # the next start
    assert left not in names(tmp_path / "store") and len(names(tmp_path / "store")) == 1
    digest = list(living)[-1].digest
    assert names(tmp_path / "store") == {digest}


def test_what_is_not_an_entry_is_left_alone_and_what_is_half_is_removed(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    publish(tmp_path / "root", "a", 0)
    digest = build.fetch(lib, "a")
    (tmp_path / "store/README").write_text("")
    (tmp_path / "store" / ("f" * 64)).mkdir()  # no files in it
    (tmp_path / "store" / ("e" * 64)).write_text("")  # not a directory
    build.library(tmp_path)
    assert names(tmp_path / "store") == {digest, "README", "e" * 64}


@pytest.mark.parametrize(
    "digest", ["", "..", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 63 + "/", "a" * 64 + "\n"]
)
def test_only_a_digest_becomes_a_path(digest: str, tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    for call in (lambda: lib.stage(digest), lambda: lib.drop(digest, from_store=True)):
        with pytest.raises(Exception, match="64 hexadecimal digits"):
            call()


def test_unknown_digests(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    lib.drop("a" * 64, from_store=True)
    lib.drop("a" * 64, from_store=False)
    with pytest.raises(NotFoundError, match="fetch it first"):
        lib.stage("a" * 64)


def test_a_load_that_fails_leaves_memory_and_pins_as_they_were(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    good = build.tensors()
    build.write(tmp_path / "root/good", build.config(), build.safetensors(good))
    for position, name in enumerate(good):  # one bad value in each tensor in turn
        spoilt = {key: value.clone() for key, value in good.items()}
        spoilt[name].view(-1)[position] = float("nan")
        build.write(tmp_path / "root/bad", build.config(), build.safetensors(spoilt))
        bad = build.fetch(lib, "bad")
        with pytest.raises(Exception, match=name):
            lib.stage(bad)
        assert lib.staged.bytes_held == 0 and len(lib.staged) == 0 and lib.store._pins == {}
    lib.stage(build.fetch(lib, "good"))
