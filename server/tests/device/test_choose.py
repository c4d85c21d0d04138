"""Which device a flag leads to, and what is said where it cannot be had."""

import pytest
import torch

from lorikeet_server.config import Device
from lorikeet_server.device.choose import choose, why_no_cuda
from lorikeet_server.errors import ConfigError


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_devices")
def test_cuda_where_torch_sees_it() -> None:
    assert choose(Device.AUTO) == torch.device("cuda", 0)
    assert choose(Device.CUDA, 1) == torch.device("cuda", 1)
    assert choose(Device.CPU) == torch.device("cpu")


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize("wanted", [Device.AUTO, Device.CUDA])
def test_more_ranks_than_devices(wanted: Device) -> None:
    """On the CPU the third would wait for the others, and they for it."""
    with pytest.raises(ConfigError, match="LOCAL_RANK 2 needs a device of its own, and 2 are visible"):
        choose(wanted, 2)
    assert choose(Device.CPU, 2) == torch.device("cpu")


def test_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose(Device.AUTO) == torch.device("cpu")
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        choose(Device.CUDA)


def test_without_cuda_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in why_no_cuda()
