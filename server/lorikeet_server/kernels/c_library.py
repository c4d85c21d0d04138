"""Opens a compiled library that has a C interface, and checks that it is the one that was expected."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

# By name: what a function returns, and its arguments.
Functions = Mapping[str, tuple[type | None, list[type]]]


def open_library(path: Path, functions: Functions, sizes_by: str, sizes: Mapping[str, int]) -> ctypes.CDLL:
    """Declares `functions`. `sizes` are bytes of structures by name, in the order in which the library's
    function `sizes_by` tells them. Raises `OSError` if it does not load or does not match."""
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in functions.items():
        function = getattr(library, name, None)
        if function is None:
            raise OSError(f"{path} has no {name}")
        function.restype, function.argtypes = result, arguments
    size_of = getattr(library, sizes_by)
    for index, (name, size) in enumerate(sizes.items()):
        if (found := size_of(index)) != size:
            raise OSError(f"{path} has a {name} of {found} bytes, expected {size}")
    return library
