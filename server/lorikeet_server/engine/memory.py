"""How the memory that is free once the weights are loaded is divided. Stated here and nowhere else.

    free = activations + margin + adapters + KV

Activations are what the largest step was measured to need. The margin is for what is not measured: on a host,
staged adapters, page cache and the router; on a GPU, fragments and what libraries allocate late.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lorikeet_server.errors import ConfigError

# What torch's allocator says, the CUDA runtime and NCCL, and cuBLAS.
NO_MEMORY = "out of memory", "ALLOC_FAILED"


@dataclass(frozen=True, slots=True)
class Shares:
    """Parts of what is free, where no flag says more."""

    usable: float  # KV and adapters together, of what activations leave
    adapters: float  # of `usable`
    bound: bool  # whether flags may ask for no more than `usable`: a host can swap, a GPU cannot


HOST = Shares(usable=0.6, adapters=1 / 3, bound=False)
GPU = Shares(usable=0.95, adapters=0.1, bound=True)


@dataclass(frozen=True, slots=True)
class Split:
    """Bytes."""

    kv: int
    adapters: int


def divide(free: int, activations: int, kv: int, adapters: int, shares: Shares) -> Split:
    """`kv` and `adapters` are what the flags ask for, 0 leaves the choice here. Raises ConfigError if they
    ask for more than there is."""
    usable = int(max(0, free - activations) * shares.usable)
    given = adapters or int(usable * shares.adapters)
    split = Split(kv or max(0, usable - given), given)
    if shares.bound and split.kv + split.adapters > usable:
        raise ConfigError(
            f"{split.kv} bytes of KV cache and {split.adapters} bytes of adapters are more than the {usable} "
            f"that the device has left beside the weights and {activations} bytes of activations; lower "
            "--kv-cache-bytes, --adapter-memory-bytes or --max-batch-prefill-tokens"
        )
    return split


@contextmanager
def room_for(what: str, remedy: str) -> Iterator[None]:
    """Raises ConfigError where `what` does not fit into the memory of the device."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        detail = str(error).splitlines()[0].partition(" See documentation")[0]
        raise ConfigError(f"the device has no room for {what}; {remedy} ({detail})") from error
