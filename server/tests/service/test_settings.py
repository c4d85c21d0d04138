"""Settings, the storage mode they choose, and the memory they divide."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorikeet_server import config
from lorikeet_server.config import Dtype, GroupConfig
from lorikeet_server.device import host, memory
from lorikeet_server.device.choose import open_device
from lorikeet_server.errors import ConfigError
from lorikeet_server.service.load import storage_mode


def test_threads_come_from_the_flag_then_the_environment_then_the_cores() -> None:
    environment = {"OMP_NUM_THREADS": "3"}
    assert config.prepare_threads(5, environment) == 5
    assert environment == {"OMP_NUM_THREADS": "5", "GOMP_SPINCOUNT": str(config.SPIN_COUNT)}
    assert config.prepare_threads(0, {"OMP_NUM_THREADS": "3"}) == 3
    assert config.prepare_threads(0, {}) == config.physical_cores() >= 1
    kept = {"GOMP_SPINCOUNT": "7"}
    config.prepare_threads(1, kept)
    assert kept["GOMP_SPINCOUNT"] == "7"
    with pytest.raises(ConfigError, match="OMP_NUM_THREADS='many'"):
        config.prepare_threads(0, {"OMP_NUM_THREADS": "many"})


def test_group() -> None:
    assert GroupConfig.from_environment({}) == GroupConfig(0, 1, "127.0.0.1", 0, 0)
    given = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "::1", "MASTER_PORT": "29500"}
    assert GroupConfig.from_environment(given) == GroupConfig(1, 2, "::1", 29500, 1)
    # The second machine of two, with a rank each: both use their first GPU.
    assert GroupConfig.from_environment(given | {"LOCAL_RANK": "0"}).local_rank == 0
    assert GroupConfig.from_environment(given | {"LOCAL_WORLD_SIZE": "2"}).local_size == 2


@pytest.mark.parametrize(
    ("dtype", "stored", "quantised", "mode"),
    [
        (Dtype.AUTO, {"torch_dtype": "bfloat16"}, False, "bfloat16"),
        (Dtype.AUTO, {"dtype": "float16"}, False, "float16"),
        (Dtype.AUTO, {"torch_dtype": "float32"}, False, "float32"),
        (Dtype.AUTO, {}, False, "float32"),
        (Dtype.AUTO, {"torch_dtype": "float32"}, True, "float16"),
        (Dtype.BFLOAT16, {"torch_dtype": "float16"}, True, "bfloat16"),
        (Dtype.FLOAT32, {"torch_dtype": "float32"}, True, "float32"),
        (Dtype.FLOAT16, {"torch_dtype": "bfloat16"}, False, "float16"),
        (Dtype.BFLOAT16, {}, False, "bfloat16"),
    ],
)
def test_storage_mode(dtype: Dtype, stored: dict[str, Any], quantised: bool, mode: str) -> None:
    source: Any = SimpleNamespace(config=stored, quantised=quantised)
    assert storage_mode(dtype, source) == mode


def test_available_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 2000 kB\nMemFree: 10 kB\nMemAvailable:    1000 kB\n")
    assert memory.available_bytes(meminfo, tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    assert memory.available_bytes(meminfo, tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("60000\n")
    assert memory.available_bytes(meminfo, tmp_path) == 55000
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 300\n")
    assert memory.available_bytes(meminfo, tmp_path) == 55300


def test_ranks_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each took as much as one alone, and all together several times what there is."""
    monkeypatch.setattr(host, "available_bytes", lambda: 1000)
    assert open_device(torch.device("cpu"), 4).available_bytes() == 250
    assert open_device(torch.device("cpu")).available_bytes() == 1000
