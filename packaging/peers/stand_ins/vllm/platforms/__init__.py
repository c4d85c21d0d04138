# The answers of vllm.platforms.cuda.CudaPlatform, from torch instead of NVML.
from typing import NamedTuple

import torch


class DeviceCapability(NamedTuple):
    major: int
    minor: int

    def to_int(self) -> int:
        return self.major * 10 + self.minor


class CudaPlatform:
    device_name = "cuda"
    device_type = "cuda"
    dispatch_key = "CUDA"
    simple_compile_backend = "inductor"

    def is_cuda(self):
        return True

    def is_cuda_alike(self):
        return True

    def is_rocm(self):
        return False

    def is_xpu(self):
        return False

    def is_tpu(self):
        return False

    def is_cpu(self):
        return False

    def is_pin_memory_available(self):
        return True

    def is_integrated_gpu(self, device_id=0):
        return bool(torch.cuda.get_device_properties(device_id).is_integrated)

    def get_device_capability(self, device_id=0):
        return DeviceCapability(*torch.cuda.get_device_capability(device_id))

    def has_device_capability(self, capability, device_id=0):
        current = self.get_device_capability(device_id)
        return current >= capability if isinstance(capability, tuple) else current.to_int() >= capability

    def is_device_capability(self, capability, device_id=0):
        current = self.get_device_capability(device_id)
        return current == capability if isinstance(capability, tuple) else current.to_int() == capability

    def get_device_name(self, device_id=0):
        return torch.cuda.get_device_name(device_id)

    def num_compute_units(self, device_id=0):
        return torch.cuda.get_device_properties(device_id).multi_processor_count


current_platform = CudaPlatform()


def vllm_version_matches_substr(substr: str) -> bool:
    """Of a CUDA wheel, whose version holds no 'cpu'."""
    from vllm.version import __version__

    return substr in __version__
