"""The way of a good adapter: fetched, staged, in a slot, dropped; and what other threads and processes may
do.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import adapter_files as build
import pytest
import torch

from lorikeet_server.adapters.device_memory import HostMemory
from lorikeet_server.adapters.library import AdapterLibrary
from lorikeet_server.adapters.slots import AdapterSlots
from lorikeet_server.adapters.staged import StagedAdapter
from lorikeet_server.errors import (
    DataLossError,
    InvalidAdapterError,
    NotFoundError,
    SourceUnavailableError,
    TooLargeError,
)
from lorikeet_server.kernels import LoraModule, LoraTables


def tables(modules: Sequence[LoraModule] = tuple(build.modules())) -> LoraTables:
    return LoraTables(modules, 2, torch.float32)


def names_in(found: LoraTables, slot: int) -> list[str]:
    """The modules that a slot changes."""
    each = [(table, index) for table in found.tables for index in range(len(table.out_features))]
    return [
        target.name
        for target, (table, index) in zip(build.targets(), each, strict=True)
        if table.get(slot, index) is not None
    ]


def test_from_directory_to_slot(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    values = build.tensors()
    build.write(tmp_path / "root/team/a.v1", build.config(), build.safetensors(values))
    progress = list(lib.fetch("local", "team/a.v1", 0))
    digest = progress[-1].digest
    assert [p.digest for p in progress[:-1]] == [""] * (len(progress) - 1)
    assert progress[-1].bytes_done == progress[-1].bytes_total == progress[0].bytes_total

    staged = lib.stage(digest)
    assert lib.stage(digest) is staged
    matrices = build.matrices(staged)
    assert (staged.max_rank, build.adapted(staged), len(matrices)) == (4, 2 * build.LAYERS, 2 * build.LAYERS)
    assert staged.memory_bytes == sum((each.a.numel() + each.b.numel()) * 4 for each in matrices.values())
    found = tables()
    slots = AdapterSlots(found, HostMemory(), lib.staged.get)
    assert slots.move(1, digest) is None and slots.held(1) == ""
    assert slots.arrived() == ([1], [])
    assert slots.held(1) == digest
    assert names_in(found, 1) == list(matrices) and names_in(found, 0) == []
    for layer in range(build.LAYERS):
        for index, leaf in ((0, "q_proj"), (2, "v_proj")):
            name = f"model.layers.{layer}.self_attn.{leaf}"
            got = found.tables[4 * layer].get(1, index)
            assert got is not None
            assert torch.equal(got.a, values[f"base_model.model.{name}.lora_A.weight"])
            assert torch.equal(got.b, values[f"base_model.model.{name}.lora_B.weight"])
            assert got.scale == 2.0
            assert got.a.data_ptr() == matrices[name].a.data_ptr()  # nothing was copied
            assert got.b.data_ptr() == matrices[name].b.data_ptr()
    lib.drop(digest, from_store=True)
    assert lib.staged.bytes_held == 0
    with pytest.raises(NotFoundError):
        lib.stage(digest)
    assert slots.move(1, "") is None
    assert names_in(found, 1) == []


def test_what_equal_headers_share_is_neither_scale_nor_values(tmp_path: Path) -> None:
    """Plans are remembered: nothing of one adapter may reach another of its shapes, or of its config."""
    lib = build.library(tmp_path)
    values = [build.tensors(), {name: 2 * each for name, each in build.tensors().items()}]
    doubled = build.config(lora_alpha=2 * build.config()["lora_alpha"])
    for name, config, tensors in (
        ("a", build.config(), values[0]),
        ("values", build.config(), values[1]),
        ("scale", doubled, values[0]),
    ):
        build.write(tmp_path / "root" / name, config, build.safetensors(tensors))
    first, other_values, other_scale = (
        build.matrices(lib.stage(build.fetch(lib, name))) for name in ("a", "values", "scale")
    )
    for module, each in first.items():
        assert torch.equal(other_values[module].a, 2 * each.a) and other_values[module].scale == each.scale
        assert torch.equal(other_scale[module].a, each.a) and other_scale[module].scale == 2 * each.scale
    longer = build.safetensors(values[0]) + b"\0"
    build.write(tmp_path / "root/longer", build.config(), longer)
    with pytest.raises(InvalidAdapterError, match=f"has {len(longer)} bytes"):
        build.fetch(lib, "longer")


def test_a_move_replaces_what_was_there(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    build.write(tmp_path / "root/wide", build.config(), build.safetensors(build.tensors()))
    only_k = build.safetensors(build.tensors(["k_proj"]))
    build.write(tmp_path / "root/narrow", build.config(target_modules=["k_proj"]), only_k)
    found = tables()
    slots = AdapterSlots(found, HostMemory(), lib.staged.get)
    for name in ("wide", "narrow"):
        digest = build.fetch(lib, name)
        lib.stage(digest)
        assert slots.move(0, digest) is None
        assert slots.arrived() == ([0], [])
    assert [name.endswith("k_proj") for name in names_in(found, 0)] == [True] * build.LAYERS


def test_a_failed_move_leaves_the_slot_empty(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    build.write(tmp_path / "root/a", build.config(), build.safetensors(build.tensors()))
    digest = build.fetch(lib, "a")
    found = tables(build.modules()[:-1])  # as if for another model
    slots = AdapterSlots(found, HostMemory(), lib.staged.get)
    failed = slots.move(0, digest)
    assert failed is not None and "not staged" in failed.message
    lib.stage(digest)
    assert slots.move(0, digest) is None
    ready, (failed,) = slots.arrived()
    assert ready == [] and failed.slot == 0 and "the widths of the model" in failed.message
    assert slots.held(0) == "" and not found.entries["a"].any()
    with pytest.raises(ValueError, match="adapter slot 7 is outside"):
        slots.move(7, digest)


def test_equal_bytes_are_one_adapter(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    weights = build.safetensors(build.tensors())
    for name in ("a", "b"):
        build.write(tmp_path / "root" / name, build.config(), weights)
    build.write(tmp_path / "root/c", build.config(lora_alpha=9), weights)
    assert build.fetch(lib, "a") == build.fetch(lib, "b") != build.fetch(lib, "c")


def test_first_root_wins(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    lib = build.library(tmp_path, roots=[one, two])
    build.write(two / "a", build.config(lora_alpha=1), build.safetensors(build.tensors()))
    one.mkdir()
    second = build.fetch(lib, "a")
    build.write(one / "a", build.config(lora_alpha=2), build.safetensors(build.tensors()))
    first = build.fetch(lib, "a")
    assert first != second
    assert {each.scale for each in build.matrices(lib.stage(first)).values()} == {0.5}


def test_a_root_that_is_gone_is_not_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    lib = build.library(tmp_path, roots=[tmp_path / "gone"])
    with pytest.raises(SourceUnavailableError):
        build.fetch(lib, "a")


def test_stored_bytes_that_changed_are_noticed_and_fetched_again(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    build.write(tmp_path / "root/a", build.config(), build.safetensors(build.tensors()))
    digest = build.fetch(lib, "a")
    stored = tmp_path / "store" / digest / "adapter_model.safetensors"
    data = bytearray(stored.read_bytes())
    for position in (3, 40, len(data) - 1):  # header length, header, data
        spoilt = bytearray(data)
        spoilt[position] ^= 0x10
        stored.write_bytes(spoilt)
        with pytest.raises(DataLossError):
            lib.stage(digest)
        assert not stored.exists() and lib.staged.bytes_held == 0
        assert build.fetch(lib, "a") == digest
    lib.stage(digest)


@pytest.mark.parametrize("replaced", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("how", ["rename", "write"])
def test_bytes_that_change_during_the_copy_are_never_mixed(tmp_path: Path, replaced: str, how: str) -> None:
    lib = build.library(tmp_path)
    directory = build.write(tmp_path / "root/a", build.config(), build.safetensors(build.tensors()))
    copying = lib.fetch("local", "a", 0)
    next(copying)  # both files are open, nothing is copied yet
    target = directory / replaced
    new = target.read_bytes()[:-1] + b" "
    if how == "rename":
        (directory / "new").write_bytes(new)
        (directory / "new").rename(target)
    else:
        target.write_bytes(new)
    with pytest.raises(SourceUnavailableError, match="changed while it was copied"):
        list(copying)
    assert list((tmp_path / "store").iterdir()) == []


def test_an_abandoned_copy_leaves_nothing(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    build.write(tmp_path / "root/a", build.config(), build.safetensors(build.tensors()))
    copying = lib.fetch("local", "a", 0)
    next(copying)
    next(copying)
    assert list((tmp_path / "store").iterdir()) != []
    copying.close()
    assert list((tmp_path / "store").iterdir()) == [] and lib.store.used_bytes == 0


def test_many_fetch_and_stage_at_once(tmp_path: Path) -> None:
    libs = [build.library(tmp_path), build.library(tmp_path)]  # two ranks, one store
    build.write(tmp_path / "root/a", build.config(), build.safetensors(build.tensors()))
    staged, failures = [], []

    def run(index: int) -> None:
        try:
            lib = libs[index % 2]
            staged.append((index % 2, lib.stage(build.fetch(lib, "a"))))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for which in (0, 1):
        assert len({id(adapter) for index, adapter in staged if index == which}) == 1
    assert len(list((tmp_path / "store").iterdir())) == 1


def test_sources_other_than_local_are_refused(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    for source in ("hub", "s3", "", "LOCAL"):
        with pytest.raises(InvalidAdapterError, match="adapter source"):
            list(lib.fetch(source, "a", 0))


def test_a_bound_on_bytes_holds_before_the_copy(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    build.write(tmp_path / "root/a", build.config(), build.safetensors(build.tensors()))
    with pytest.raises(TooLargeError, match="at most 100 are fetched"):
        build.fetch(lib, "a", max_bytes=100)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_bound_on_ranks_holds_where_an_adapter_comes_in_and_where_it_is_read(tmp_path: Path) -> None:
    """The store may hold what was fetched under a higher one."""
    lib = build.library(tmp_path)
    patterned = build.config(r=2, rank_pattern={"q_proj": 4})
    values = build.tensors(["q_proj"], rank=4) | build.tensors(["v_proj"], rank=2)
    build.write(tmp_path / "root/a", patterned, build.safetensors(values))
    digest = build.fetch(lib, "a")
    bounded = AdapterLibrary(replace(lib.model, max_rank=3), lib.roots, lib.store)
    message = r'rank_pattern\["q_proj"\] to 4; expected is a whole number from 1 to 3 \(--max-lora-rank\)'
    with pytest.raises(InvalidAdapterError, match=message):
        build.fetch(bounded, "a")
    with pytest.raises(InvalidAdapterError, match=message):
        bounded.stage(digest)
    assert AdapterLibrary(replace(lib.model, max_rank=4), lib.roots, lib.store).stage(digest).max_rank == 4


def test_callers_that_meet_get_one_load_or_one_error(tmp_path: Path) -> None:
    lib = build.library(tmp_path)
    spoilt = build.tensors()
    spoilt[next(iter(spoilt))][0, 0] = float("inf")
    build.write(tmp_path / "root/a", build.config(), build.safetensors(spoilt))
    digest = build.fetch(lib, "a")
    waiting, loading, go = threading.Barrier(9), threading.Event(), threading.Event()

    def load() -> StagedAdapter:
        loading.set()
        go.wait(10)
        return lib._load(digest)

    errors = []

    def run() -> None:
        waiting.wait()
        try:
            lib.staged.get_or_load(digest, load)
        except InvalidAdapterError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    waiting.wait()
    loading.wait(10)
    go.set()
    for thread in threads:
        thread.join()
    assert len(errors) == 8
    with pytest.raises(InvalidAdapterError):  # nothing is remembered: the next one tries again
        lib.stage(digest)


@pytest.mark.parametrize("again", [False, True])
def test_what_is_dropped_while_it_is_loaded_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """A router that has given up on it does not count it; `again`: it has asked for it once more since."""
    lib = build.library(tmp_path)
    build.write(tmp_path / "root/a", build.config(), build.safetensors(build.tensors()))
    digest = build.fetch(lib, "a")
    loading, go, load = threading.Event(), threading.Event(), AdapterLibrary._load

    def slow(library: AdapterLibrary, digest: str) -> StagedAdapter:
        loading.set()
        go.wait(10)
        return load(library, digest)

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(AdapterLibrary, "_load", slow)
        late = pool.submit(lib.stage, digest)
        assert loading.wait(10)
        lib.unstage()
        patch.setattr(AdapterLibrary, "_load", load)
        kept = lib.stage(digest) if again else None
        go.set()
        assert late.result(10).digest == digest
    assert lib.staged.get(digest) is kept


def test_a_source_that_breaks_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = build.library(tmp_path)
    build.write(tmp_path / "root/a", build.config(), build.safetensors(build.tensors()))

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    for call in ("preadv", "read"):
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{call}", broken)
            with pytest.raises(SourceUnavailableError, match="Input/output error"):
                build.fetch(lib, "a")
    assert list((tmp_path / "store").iterdir()) == []
