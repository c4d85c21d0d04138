"""The pretended device refuses what a device refuses, and computes the rest."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pretended_cuda import pretended_cuda
from pretended_tensor import DEVICE, PretendedDevice

from lorikeet_server.device.cuda import CudaDevice


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedDevice]:
    with torch.inference_mode(), pretended_cuda(monkeypatch) as device:
        yield device


def test_tensors_of_host_and_device_do_not_mix(device: PretendedDevice) -> None:
    there, here = torch.ones(3, device=DEVICE), torch.ones(3)
    assert there.is_cuda and (there + 1)[1:].device == DEVICE
    for mix in (
        lambda: there + here,
        lambda: there[torch.tensor([0])],
        lambda: there.index_add_(0, here.long(), here),
    ):
        with pytest.raises(RuntimeError, match="of the host"):
            mix()
    with pytest.raises(TypeError, match="no array"):
        there.numpy()
    assert (there * torch.tensor(2.0)).to("cpu").tolist() == [2.0, 2.0, 2.0]


def test_waiting_is_noticed_where_it_is_forbidden(device: PretendedDevice) -> None:
    there = torch.arange(4, device=DEVICE)
    assert there.sum().item() == 6
    torch.cuda.set_sync_debug_mode("error")
    for wait in (
        lambda: there.sum().item(),
        lambda: there[there > 1],
        lambda: bool(there[0]),
        lambda: there.cpu(),
    ):
        with pytest.raises(AssertionError, match="waits for the device"):
            wait()
    host = CudaDevice(DEVICE).download(there)
    assert host.tolist() == [0, 1, 2, 3]


def test_captured_work_is_done_again_where_it_was(device: PretendedDevice) -> None:
    (given,) = CudaDevice(DEVICE).upload(np.array([1.0, 2.0], np.float32))
    replay, (doubled,) = CudaDevice(DEVICE).capture(lambda: (given * 2,))
    given += 10
    assert doubled.cpu().tolist() == [2.0, 4.0]
    replay()
    assert doubled.cpu().tolist() == [22.0, 24.0]
    with pytest.raises(AssertionError, match="waits for the device"):
        CudaDevice(DEVICE).capture(lambda: (given * float(given.sum()),))
