"""Finding nvcc, and what is said where there is none."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from lorikeet_server.kernels.compiled import BuildError
from lorikeet_server.kernels.cuda import build, toolkit

FILES = ["bin/nvcc", "bin/ptxas", "include/cuda_runtime.h", "include/cuda_bf16.h", "lib/libcudart_static.a"]


def pretend(root: Path, files: list[str]) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch(mode=0o755)
    return root


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No toolkit anywhere."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    places = [str(tmp_path / "site/nvidia"), str(tmp_path / "other/nvidia")]
    monkeypatch.setattr(toolkit, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=places))


def test_what_is_advised_is_the_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())
    assert list(toolkit.EXTRA) == project["project"]["optional-dependencies"]["cuda"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="nvcc is not on the PATH") as failure:
        build.library("90", tmp_path)
    assert toolkit.INSTALL in str(failure.value)


def test_the_order_is_home_then_pypi_then_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_path = pretend(tmp_path / "path", [*FILES, "lib64/libcudart_static.a"])
    monkeypatch.setenv("PATH", str(on_path / "bin"))
    assert toolkit.find().root == on_path
    assert toolkit.find().flags == ("-I", f"{on_path}/include", "-L", f"{on_path}/lib64")
    pretend(tmp_path / "site/nvidia/cu14", FILES[2:])  # torch's, say
    other = pretend(tmp_path / "other/nvidia/cu13", FILES)
    assert toolkit.find().root == other
    pypi = pretend(tmp_path / "site/nvidia/cu13", FILES)
    assert toolkit.find().root == pypi
    assert toolkit.find().flags[-1] == f"{pypi}/lib"
    home = pretend(tmp_path / "home", FILES)
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert toolkit.find().root == home


def test_a_part_of_a_toolkit_is_passed_over_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(pretend(tmp_path / "home", FILES[:3])))
    with pytest.raises(
        BuildError, match=r"CUDA_HOME .*home has no include/cuda_bf16.h, lib/libcudart_static.a"
    ):
        toolkit.find()
    whole = pretend(tmp_path / "site/nvidia/cu13", FILES)
    assert toolkit.find().root == whole


def test_what_was_built_ahead_needs_no_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "AHEAD", tmp_path / "ahead")
    ahead = pretend(tmp_path / "site/nvidia/cu13", FILES) and tmp_path / "ahead"
    monkeypatch.setattr(
        build, "_compile", lambda tools, architectures, output: output.write_text(" ".join(architectures))
    )
    made = build.build_ahead()
    assert made.is_relative_to(ahead) and made.read_text() == "80 90"
    monkeypatch.setattr(toolkit, "find_spec", lambda _: None)
    assert build.library("90", tmp_path / "cache") == build.library("120", tmp_path / "cache") == made
    with pytest.raises(BuildError):
        build.library("75", tmp_path / "cache")
