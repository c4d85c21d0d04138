"""What FlashInfer is told to compile with; `test_cuda_compiles` does it."""

from __future__ import annotations

import logging
import sys
import sysconfig
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lorikeet_server.kernels.compiled import BuildError
from lorikeet_server.kernels.cuda import flashinfer_library, toolkit
from lorikeet_server.kernels.cuda.flashinfer_library import RELEASE, open_flashinfer, prepare
from lorikeet_server.kernels.cuda.toolkit import Toolkit


@pytest.fixture(autouse=True)
def beside_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Toolkit:
    """What torch brings: a runtime and headers, no compiler."""
    found = Toolkit(tmp_path / "torch/nvidia/cu13")
    monkeypatch.setattr(toolkit, "from_pypi", lambda: [found])
    return found


def runtime(tools: Toolkit, name: str) -> Path:
    path = tools.root / "lib" / name
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_what_a_toolkit_lacks_is_found_beside_torch(beside_torch: Toolkit, tmp_path: Path) -> None:
    tools = Toolkit(tmp_path / "nvcc")
    library = runtime(beside_torch, "libcudart.so.13")
    environment = {"PATH": "/bin", "FLASHINFER_EXTRA_LDFLAGS": "-lgiven"}
    prepare(tools, tmp_path / "cache", environment)
    [workspace] = (tmp_path / "cache").iterdir()
    links = {link.name: link.resolve() for link in workspace.iterdir()}
    assert links == {"libcudart.so": library, "libcuda.so": library}
    headers = f" -isystem {tools.root}/include -isystem {beside_torch.root}/include"
    assert environment == {
        "CUDA_HOME": str(tools.root),
        "FLASHINFER_WORKSPACE_BASE": str(workspace),
        "FLASHINFER_USE_CUDA_NORM": "1",
        "FLASHINFER_EXTRA_CFLAGS": headers,
        "FLASHINFER_EXTRA_CUDAFLAGS": headers,
        "FLASHINFER_EXTRA_LDFLAGS": f"-lgiven -L{workspace}",
        "PATH": f"/bin:{sysconfig.get_path('scripts')}",
    }


def test_every_toolkit_links_with_its_own_runtime_and_keeps_its_builds_apart(
    beside_torch: Toolkit, tmp_path: Path
) -> None:
    runtime(beside_torch, "libcudart.so.13")
    for name in ("one", "other"):
        tools = Toolkit(tmp_path / name)
        library = runtime(tools, "libcudart.so")
        for _ in range(2):  # as two ranks would
            environment: dict[str, str] = {}
            prepare(tools, tmp_path / "cache", environment)
            assert Path(environment["FLASHINFER_WORKSPACE_BASE"], "libcudart.so").resolve() == library
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_workspace_that_was_given_is_kept(beside_torch: Toolkit, tmp_path: Path) -> None:
    runtime(beside_torch, "libcudart.so.13")
    environment = {"FLASHINFER_WORKSPACE_BASE": "/given"}
    prepare(beside_torch, tmp_path / "cache", environment)
    assert environment["FLASHINFER_WORKSPACE_BASE"] == "/given"


def test_no_runtime_to_link_with(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no libcudart.so to link with in .*nvcc/lib64, .*torch"):
        prepare(Toolkit(tmp_path / "nvcc"), tmp_path / "cache", {})


def test_another_release_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = ModuleType("flashinfer")
    other.__version__ = "0.6.70"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", other)
    monkeypatch.setattr(toolkit, "find", lambda: None)
    monkeypatch.setattr(flashinfer_library, "prepare", lambda _: None)
    with caplog.at_level(logging.WARNING):
        assert open_flashinfer(torch.device("cpu"), torch.float16) is None
    assert f"0.6.70 is installed, and {RELEASE} wanted; it comes with pip install" in caplog.text


def test_the_release_is_the_one_that_is_installed_with_us() -> None:
    assert any(each.startswith(f"flashinfer-python=={RELEASE}.") for each in requires("lorikeet") or ())
