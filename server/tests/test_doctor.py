"""What `doctor` advises mends what it found."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from typing import NoReturn

import pytest

import lorikeet_server.kernels
from lorikeet_server import doctor
from lorikeet_server.kernels.compiled import BuildError


def kernels_that_fail(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(lorikeet_server.kernels, "select", fail)
    monkeypatch.setattr(doctor, "_has_gpu", lambda: False)
    finding = next(finding for finding in doctor.examine() if finding.name == "kernels")
    assert str(error) in finding.value
    return finding.remedy


def test_kernels_without_a_compiler_want_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "g++" in kernels_that_fail(monkeypatch, BuildError("no C++ compiler found"))


def test_kernels_that_cannot_be_kept_want_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = kernels_that_fail(monkeypatch, PermissionError(13, "Permission denied"))
    assert "LORIKEET_CACHE_DIR" in remedy and "g++" not in remedy


def test_packages_are_installed_where_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> NoReturn:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    finding = next(finding for finding in doctor.examine() if finding.name == "gguf")
    assert finding.remedy == f"{sys.executable} -m pip install gguf"
