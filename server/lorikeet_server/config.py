"""Settings of the process: flags and environment, read once into frozen values. Nothing else reads the
environment."""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lorikeet_server.errors import ConfigError

# Environment variables. The launcher sets the first six; they keep the names that torch.distributed uses.
RANK = "RANK"  # this shard's rank, default 0
WORLD_SIZE = "WORLD_SIZE"  # shards in the group, default 1
MASTER_ADDR = "MASTER_ADDR"  # where rank 0 listens, default 127.0.0.1
MASTER_PORT = "MASTER_PORT"  # its port; required when WORLD_SIZE > 1
LOCAL_RANK = "LOCAL_RANK"  # this shard's number on its machine, which names its GPU; default RANK
LOCAL_WORLD_SIZE = "LOCAL_WORLD_SIZE"  # shards on this machine, which share its memory; default 1
OMP_NUM_THREADS = "OMP_NUM_THREADS"  # threads of the compute kernels, unless --threads says otherwise
LOG_LEVEL = "LOG_LEVEL"  # least level of log records; debug or trace shows details
TORCH_CPP_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"  # what torch's C++ tells
GOMP_SPINCOUNT = "GOMP_SPINCOUNT"  # how long an idle kernel thread spins before it sleeps
KERNEL_ISA = "LORIKEET_KERNEL_ISA"  # instruction set of the kernels: avx512, avx2, portable; else the best
CACHE_DIR = "LORIKEET_CACHE_DIR"  # kernels and tokenizers are kept there; the launcher sets it
XDG_CACHE_HOME = "XDG_CACHE_HOME"  # else in lorikeet below this, default ~/.cache
CUDA_HOME = (
    "CUDA_HOME"  # the toolkit that compiles CUDA kernels; else the one from PyPI, else nvcc's on the PATH
)

# The kernels have their own threads; torch's remaining ops use OpenMP's. Sleeping at each of its barriers
# costs a wake-up of 5-50 us, spinning takes the cores from the router and from whichever thread the others
# wait for (seen: 6 ms of small ops took 5.7 s beside a busy process; libgomp spins 300,000 pauses of 15-50
# ns). So: spin for some tens of microseconds, about the time between two ops, then sleep.
SPIN_COUNT = 1_000

# What the kernels are made for; --max-lora-rank may only be less.
MAX_LORA_RANK = 512

# Ends a process that cannot use its settings or its model: starting it again is of no use.
EXIT_CONFIG = 64
# Ends one that lacks the other ranks: nothing is wrong with it.
EXIT_ALONE = 75


class Dtype(StrEnum):
    """How weights are stored. `auto` keeps the precision of the checkpoint."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Device(StrEnum):
    """Where the model runs. `auto` takes CUDA where torch sees a device, else the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """This process's place among the shards."""

    rank: int
    world_size: int
    address: str
    port: int
    local_rank: int
    local_size: int = 1  # ranks on this machine

    @property
    def apart(self) -> bool:
        """Whether it is on another machine than rank 0, and so than the router."""
        return self.rank != self.local_rank

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "GroupConfig":
        """Raises ConfigError naming the variable."""
        size = _integer(environment, WORLD_SIZE, 1, 1, 1024)
        rank = _integer(environment, RANK, 0, 0, size - 1)
        return cls(
            rank=rank,
            world_size=size,
            address=environment.get(MASTER_ADDR, "127.0.0.1"),
            port=_integer(environment, MASTER_PORT, None if size > 1 else 0, 0, 65535),
            local_rank=_integer(environment, LOCAL_RANK, rank, 0, rank),
            local_size=_integer(environment, LOCAL_WORLD_SIZE, 1, 1, size),
        )


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Everything `serve` needs."""

    model_path: Path
    model_id: str
    uds_path: Path
    dtype: Dtype
    device: Device
    adapter_roots: tuple[Path, ...]
    store_dir: Path
    disk_bytes: int
    max_lora_rank: int
    threads: int
    group: GroupConfig

    def __post_init__(self) -> None:
        if os.path.lexists(self.uds_path):
            # Not ours to remove, and not to be trusted: another user may have put it there.
            raise ConfigError(f"--uds-path {self.uds_path} exists already; use a fresh directory")
        for root in self.adapter_roots:
            if not root.is_dir():
                raise ConfigError(f"--adapter-root {root} is not a directory")


def environment() -> Mapping[str, str]:
    """The process environment."""
    return os.environ


def cache_directory() -> Path:
    """Where what is made on first use is kept."""
    if own := environment().get(CACHE_DIR):
        return Path(own)
    root = environment().get(XDG_CACHE_HOME)
    return (Path(root) if root else Path.home() / ".cache") / "lorikeet"


def prepare_threads(threads: int, environment: MutableMapping[str, str] = os.environ) -> int:
    """Settles the number of kernel threads and how they wait. To be called before torch is imported, since
    the OpenMP runtime reads both once, as it is loaded. `threads` 0: OMP_NUM_THREADS, else one per physical
    core."""
    count = threads or _integer(environment, OMP_NUM_THREADS, 0, 0, 4096) or physical_cores()
    environment[OMP_NUM_THREADS] = str(count)
    environment.setdefault(GOMP_SPINCOUNT, str(SPIN_COUNT))
    return count


def hush_torch(environment: MutableMapping[str, str] = os.environ) -> None:
    """To be called before torch is imported. It prints a page of stack when rank 0 has left, which is told
    in a line as well."""
    environment.setdefault(TORCH_CPP_LOG_LEVEL, "ERROR")


def physical_cores() -> int:
    """Cores this process may run on, hyperthreads counted once."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(
                (
                    topology.joinpath("physical_package_id").read_text(),
                    topology.joinpath("core_id").read_text(),
                )
            )
        except OSError:
            return len(allowed)
    return len(cores)


def _integer(environment: Mapping[str, str], name: str, default: int | None, low: int, high: int) -> int:
    text = environment.get(name)
    if text is None:
        if default is None:
            raise ConfigError(f"{name} must be set when {WORLD_SIZE} is above 1")
        return default
    try:
        value = int(text)
    except ValueError:
        raise ConfigError(f"{name}={text!r} is not a number") from None
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is outside {low}..{high}")
    return value
