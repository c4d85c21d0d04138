"""What the launches of all our CUDA kernels have in common."""

import torch
from torch import Tensor

FORMATS = {torch.bfloat16: 0, torch.float16: 1}  # LorikeetFormat
# Compute capability. Ours copy and multiply as Ampere does; FlashInfer's would end the process where an older
# device is to multiply in bfloat16.
OLDEST = (8, 0)


def why_not(capability: tuple[int, int], dtype: torch.dtype) -> str:
    """What keeps a device from running our kernels and FlashInfer's; empty if nothing does."""
    if dtype not in FORMATS:
        return f"they compute in bfloat16 and float16, not in {dtype}"
    if capability < OLDEST:
        needed, found = ("{}.{}".format(*each) for each in (OLDEST, capability))
        return f"they need compute capability {needed}, and this device has {found}"
    return ""


def can_overlap(device: torch.device) -> bool:
    """Whether a kernel may begin while the one before it ends (sm_90)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def stream_of(device: torch.device) -> int | None:
    """The stream that is current, by its handle; None under emulation."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def check(
    tensor: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Raises `TypeError` for a wrong dtype, `ValueError` for a wrong shape or place; strides may be any."""
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, not {list(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, not on {tensor.device}")


def check_whole(
    tensor: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """As `check`, for a tensor without gaps."""
    check(tensor, name, shape, dtype, device)
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous")


def check_rows(
    tensor: Tensor, name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """As `check`, for a matrix whose rows may be apart."""
    check(tensor, name, shape, dtype, device)
    apart = tensor.stride(0) if shape[0] > 1 else 0
    if tensor.stride(1) != 1 or apart % 8 or tensor.data_ptr() % 16:
        raise ValueError(f"{name} must have contiguous rows that begin on 16 bytes")
