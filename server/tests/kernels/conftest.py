"""Every instruction set that this processor has or can emulate, against the torch reference."""

from collections.abc import Iterator

import pytest
import torch
from emulated_avx512 import emulated_kernels

from lorikeet_server.kernels import Kernels, select
from lorikeet_server.kernels.cpu.backend import INSTRUCTION_SETS

# More threads than a small machine has cores, so tiles are stolen and threads preempted. Torch itself gets
# one, since its barriers are slow on a busy machine.
KERNEL_THREADS = 3


@pytest.fixture(scope="session", params=INSTRUCTION_SETS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The C++ backend on one instruction set."""
    torch.set_num_threads(KERNEL_THREADS)
    try:
        return select("cpu", request.param)
    except RuntimeError as error:
        if "this processor has no" not in str(error):
            raise
        if select("cpu", "auto").name == "cpu-avx2":
            return emulated_kernels()
        pytest.skip(str(error))
    finally:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference() -> Kernels:
    """The definition of every op."""
    return select("reference")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same random numbers for every test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20261121)
        yield
