"""A library that is not the one expected is refused when it is opened, not when it is called."""

import ctypes
import re
from pathlib import Path

import pytest

from lorikeet_server.kernels.c_library import open_library
from lorikeet_server.kernels.cpu import abi, build

SIZES = {structure.__name__: ctypes.sizeof(structure) for structure in abi.STRUCTURES}


def opened(sizes: dict[str, int], **functions: tuple[type | None, list[type]]) -> ctypes.CDLL:
    return open_library(build.library(), {**abi.FUNCTIONS, **functions}, "lk_struct_bytes", sizes)


def test_functions_are_declared_as_they_are_listed() -> None:
    library = opened(SIZES)
    for name, (result, arguments) in abi.FUNCTIONS.items():
        assert (getattr(library, name).restype, getattr(library, name).argtypes) == (result, arguments)


@pytest.mark.parametrize("name", SIZES)
def test_a_structure_of_another_size_is_named(name: str) -> None:
    wrong = SIZES | {name: SIZES[name] + 8}
    message = f"has a {name} of {SIZES[name]} bytes, expected {SIZES[name] + 8}"
    with pytest.raises(OSError, match=re.escape(message)):
        opened(wrong)


def test_a_missing_function_is_named() -> None:
    with pytest.raises(OSError, match="has no lk_nonsense"):
        opened(SIZES, lk_nonsense=(None, []))


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "library.so").write_text("not one")
    with pytest.raises(OSError, match=r"library\.so"):
        open_library(tmp_path / "library.so", {}, "size", {})
