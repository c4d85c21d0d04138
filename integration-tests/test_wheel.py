"""The source distribution makes a wheel, and that works where nothing but its dependencies is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the source distribution, and the wheel that was made from it."""
    out = tmp_path_factory.mktemp("dist")
    maturin = Path(sys.executable).with_name("maturin")
    # What other packages compiled to for `make setup` is used again.
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
    run(maturin, "build", "--release", "--locked", "--sdist", "--out", out, cwd=ROOT, CARGO_TARGET_DIR=target)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [path] = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` directory of a fresh environment: the wheel, and the dependencies of this one."""
    environment = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", environment)
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    # Gigabytes need not be installed again. What a .pth file adds comes after the environment's own
    # packages, and .pth
    # files found there, such as that of an editable install, are not read.
    [site] = (environment / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def test_the_binary_runs(installed: Path) -> None:
    version = run(installed / "lorikeet", "--version").split()[-1]
    code = (
        "import importlib.metadata as m, lorikeet_server as s\n"
        "print(m.version('lorikeet'), s.__version__, s.__file__)"
    )
    of_wheel, of_package, file = run(installed / "python", "-c", code, cwd=installed).split()
    assert version == of_wheel == of_package
    assert Path(file).is_relative_to(installed.parent)


def test_the_binary_finds_its_python(installed: Path) -> None:
    report = json.loads(run(installed / "lorikeet", "doctor", "--json", cwd=installed))
    assert Path(report["python"]["executable"]) == installed / "python"
    assert report["would_use"]["kernels"].startswith(("cpu-", "cuda"))


def test_the_package_is_whole_and_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for part in (
        "lorikeet_server/py.typed",
        "lorikeet_server/pb/shard_pb2.py",
        "lorikeet_server/kernels/csrc/cpu/api.cpp",
    ):
        assert part in names, part
    assert any(name.endswith(".data/scripts/lorikeet") for name in names)
    assert any(name.endswith("LICENSE") for name in names)
    listed = run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", "server/lorikeet_server", cwd=ROOT
    )
    sources = {name for name in listed.split() if (ROOT / name).exists()}
    shipped = {
        f"server/{name}" for name in names if name.startswith("lorikeet_server/") and not name.endswith("/")
    }
    assert shipped == sources


def test_the_source_distribution_is_whole(built: Path) -> None:
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    committed = run(
        "git", "ls-files", "launcher/src", "router", "proto", "server/lorikeet_server", cwd=ROOT
    ).split()
    missing = [name for name in committed if name not in names]
    assert not missing
    assert {"Cargo.toml", "Cargo.lock", "pyproject.toml", "LICENSE", "PKG-INFO"} <= names
