"""Building the library: once, under a lock, in a cache that the sources key."""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lorikeet_server.kernels import compiled, registry
from lorikeet_server.kernels.cpu import abi, build


@pytest.mark.slow
def test_concurrent_builds_make_one_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks start at once on a machine without a cache. A tiny source tree keeps it short."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "one.cpp").write_text('extern "C" int one() { return 1; }')
    script = (
        "from pathlib import Path; from lorikeet_server.kernels.cpu import build; "
        f"build.SOURCES = Path({str(sources)!r}); print(build.library(Path({str(tmp_path / 'cache')!r})))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    paths = {run.communicate(timeout=120)[0].strip() for run in runs}
    assert all(run.returncode == 0 for run in runs)
    assert len(paths) == 1
    assert sorted(p.name for p in Path(paths.pop()).parent.iterdir()) == ["liblorikeet_cpu.so", "lock"]

    monkeypatch.setattr(build, "SOURCES", sources)
    before = build.library(tmp_path / "cache")
    (sources / "one.cpp").write_text('extern "C" int one() { return 2; }')
    assert build.library(tmp_path / "cache") != before
    with pytest.raises(OSError, match="lk_struct_bytes"):
        abi.load(before)


def test_what_was_built_ahead_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "one.cpp").write_text('extern "C" int one() { return 1; }')
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "AHEAD", tmp_path / "ahead")
    ahead = build.build_ahead()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert build.library(tmp_path / "cache") == ahead
    (sources / "one.cpp").write_text('extern "C" int one() { return 2; }')
    with pytest.raises(build.BuildError, match="install g"):
        build.library(tmp_path / "cache")


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    """A supervisor that loses patience with a first start kills it again and again."""
    (tmp_path / "tmpkilled").mkdir()
    (tmp_path / "tmpkilled" / "one.o").write_text("half")
    target = compiled.built(tmp_path / "library.so", "CPU", lambda output: output.write_text("whole"))
    assert target.read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["library.so", "lock"]


def test_a_compiler_error_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.cpp").write_text("int main() { return missing; }")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    with pytest.raises(build.BuildError, match="missing"):
        build.library(tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_no_compiler_falls_back_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "default_cache", lambda: tmp_path)
    assert registry.select().name == "reference"
    assert "install g++" in caplog.text
    with pytest.raises(build.BuildError):
        registry.select("cpu")


def test_the_environment_chooses_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_KERNEL_ISA", "portable")
    assert registry.select("cpu").name == "cpu-portable"
    monkeypatch.setenv("LORIKEET_KERNEL_ISA", "sse9")
    with pytest.raises(ValueError, match="unknown instruction set 'sse9'"):
        registry.select()


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="known: reference, cpu"):
        registry.select("gpu")
    with pytest.raises(ValueError, match="instruction set"):
        registry.select("cpu", "sse9")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 instructions")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_products_prefetch_their_weights_and_adapters() -> None:
    """A compiler may leave a prefetch out without a word: it did, and 8 rows took 1.4 times as long."""
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", str(build.library())]
    listing = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    functions = re.findall(r"^[0-9a-f]+ <void (lorikeet::\w+::block<.*?)\(.*>:\n((?:.+\n)*)", listing, re.M)
    assert {name.split("::")[1] for name, _ in functions} == {"portable", "avx2", "avx512"}
    assert not [name for name, code in functions if "prefetcht1" not in code]
    adapters = re.findall(r"^[0-9a-f]+ <lorikeet::Lines::Part::fetch\(.*>:\n((?:.+\n)*)", listing, re.M)
    assert len(adapters) == 1 and "prefetcht1" in adapters[0]
