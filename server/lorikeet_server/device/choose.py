"""From the `--device` flag to a device."""

import torch

from lorikeet_server import config
from lorikeet_server.device.base import Device
from lorikeet_server.device.host import HostDevice
from lorikeet_server.errors import ConfigError


def choose(wanted: config.Device, local_rank: int = 0) -> torch.device:
    """`auto` takes CUDA where there is a device, else the CPU; it is the same for all ranks. Raises
    ConfigError naming what is missing."""
    if wanted is config.Device.CPU:
        return torch.device("cpu")
    missing = why_no_cuda(local_rank)
    if not missing:
        return torch.device("cuda", local_rank)
    if wanted is config.Device.CUDA or not why_no_cuda():
        raise ConfigError(f"--device {wanted.value}: {missing}; use --device cpu")
    return torch.device("cpu")


def why_no_cuda(local_rank: int = 0) -> str:
    """What keeps CUDA from being used; empty if nothing does."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device (driver missing, too old, or no GPU visible)"
    if local_rank >= (count := torch.cuda.device_count()):
        return f"LOCAL_RANK {local_rank} needs a device of its own, and {count} are visible (--num-shard)"
    return ""


def open_device(device: torch.device, local_ranks: int = 1) -> Device:
    """The engine's way to `device`, where a host is shared by `local_ranks`; makes a CUDA device the current
    one of this thread."""
    if device.type == "cpu":
        return HostDevice(local_ranks)
    from lorikeet_server.device.cuda import CudaDevice

    torch.cuda.set_device(device)
    return CudaDevice(device)
