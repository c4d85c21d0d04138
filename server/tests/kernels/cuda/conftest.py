"""Where the CUDA kernels can run."""

from __future__ import annotations

import pytest
import torch
from cuda_target import Target, emulated_library

from lorikeet_server.kernels.cuda.library import open_library


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A CPU."""
    return Target(emulated_library(tmp_path_factory.mktemp("emulated")), torch.device("cpu"))


@pytest.fixture(scope="session")
def on_device() -> Target:
    """A GPU; for tests marked `gpu`."""
    device = torch.device("cuda", torch.cuda.current_device())
    return Target(open_library(device), device)


@pytest.fixture(scope="session", params=["emulated", pytest.param("on_device", marks=pytest.mark.gpu)])
def target(request: pytest.FixtureRequest) -> Target:
    """Both, behind one interface."""
    found: Target = request.getfixturevalue(request.param)
    return found
