"""Fixtures: the small random model for faults, the real one for exactness."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from support.models import tiny_model, write_adapter
from support.server import Server

EXAMPLES = Path(__file__).parents[1] / "examples" / "adapters"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the tiny model."""
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with adapters `a0` .. `a15` for the tiny model, of ranks 1 to 16."""
    root = tmp_path_factory.mktemp("adapters")
    for index in range(16):
        write_adapter(root / f"a{index}", rank=index + 1, seed=index)
    return root


@pytest.fixture(scope="module")
def tiny_server(tiny: Path, tiny_adapters: Path) -> Iterator[Server]:
    """The tiny model in fp32, shared by the tests of one module: they leave it running."""
    with Server(str(tiny), [tiny_adapters], ["--dtype", "float32"]) as server:
        yield server


@pytest.fixture(scope="session")
def smollm2() -> Iterator[Server]:
    """The demo model in fp32 with the example adapters."""
    with Server("smollm2", [EXAMPLES], ["--dtype", "float32"]) as server:
        yield server
