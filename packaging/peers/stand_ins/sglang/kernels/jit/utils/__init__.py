import functools

import torch


@functools.cache
def is_arch_support_pdl() -> bool:
    return torch.cuda.get_device_capability()[0] >= 9
