"""From settings to an engine: weights read, packed, and the adapter library opened."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from loguru import logger

from lorikeet_server import __version__
from lorikeet_server.adapters.base_weights import base_weights
from lorikeet_server.adapters.library import AdapterLibrary, ServedModel
from lorikeet_server.adapters.store import Store
from lorikeet_server.config import Dtype, ServeConfig
from lorikeet_server.device.choose import choose, open_device
from lorikeet_server.dist import connect
from lorikeet_server.engine.engine import Engine, Identity
from lorikeet_server.engine.memory import room_for
from lorikeet_server.errors import ConfigError
from lorikeet_server.kernels import LinearMode, select
from lorikeet_server.models import registry
from lorikeet_server.weights import Progress, ReportingSource, WeightSource, open_source

FIRST_SECONDS, PROGRESS_SECONDS = 1.0, 3.0


def load_engine(config: ServeConfig, broken: Callable[[], object], endpoint: str = "") -> Engine:
    """Blocks until the weights are in memory, and with several ranks until all have joined (see
    `dist.connect` for `broken` and `endpoint`). Runs on the thread that will call for steps. Raises
    ConfigError, ModelError, WeightsError, GroupError."""
    started = time.monotonic()
    source = open_source(config.model_path)
    registry.configure(source.config)  # refuse an unknown model before waiting for anything
    store = open_store(config.store_dir, config.disk_bytes)
    mode = storage_mode(config.dtype, source)
    group = config.group
    where = choose(config.device, group.local_rank)
    # A CPU computes in float32 whatever the weights are stored in.
    kernels = select(device=where, dtype=torch.float32 if where.type == "cpu" else getattr(torch, mode))
    device = open_device(where, group.local_size)
    tp = connect(group, where, broken, endpoint)
    reporting = ReportingSource(source, reporter(config.model_id), group.world_size)
    with room_for(config.model_id, "--num-shard divides it over several"):
        model = registry.load(reporting, kernels, mode, tp)
    dtype = getattr(torch, mode)
    names = [config.model_id, config.model_path.name, str(source.config.get("_name_or_path", ""))]
    served = ServedModel(
        names=names,
        targets=model.lora_targets(),
        adapter_dtype=dtype,
        base_weights=base_weights(source, model.embedding_weights),
        max_rank=config.max_lora_rank,
        layout=kernels.lora_layout,
        pinned_memory=device.discrete,
    )
    library = AdapterLibrary(served, [str(root) for root in config.adapter_roots], store)
    if kernels.own_threads:
        # What steps leave to torch is small, and its threads would wait for cores that the kernels' hold: on
        # two cores, 7 ms of a step with penalties.
        torch.set_num_threads(1)
    seconds = time.monotonic() - started
    logger.info("loaded {} as {} on {} kernels in {:.1f} s", config.model_id, mode, kernels.name, seconds)
    identity = Identity(config.model_id, source.digest, mode, __version__)
    kv_dtype = kernels.kv_dtype(mode, quantised=source.quantised)
    return Engine(identity, model, kernels, device, tp, library, kv_dtype)


def open_store(directory: Path, disk_bytes: int) -> Store:
    """The adapter store. Raises ConfigError where nothing can be written: no adapter could be served."""
    try:
        store = Store(str(directory), disk_bytes)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        what = f"--store-dir {directory}: {error.strerror}"
        raise ConfigError(f"{what}; give a directory that can be written") from error
    return store


def storage_mode(dtype: Dtype, source: WeightSource) -> LinearMode:
    """`auto` rounds nothing that the checkpoint holds. But what was quantised far below 16 bits loses nothing
    that matters when it is dequantised to float16, which takes half the memory traffic of float32."""
    if dtype is Dtype.FLOAT32:
        return "float32"
    if dtype is Dtype.BFLOAT16:
        return "bfloat16"
    if dtype is Dtype.FLOAT16 or source.quantised:
        return "float16"
    stored = source.config.get("dtype") or source.config.get("torch_dtype")
    return "bfloat16" if stored == "bfloat16" else "float16" if stored == "float16" else "float32"


def reporter(model_id: str) -> Callable[[Progress], None]:
    """Logs how far the reading of `model_id` has come: after a second, then every few."""
    due = time.monotonic() + FIRST_SECONDS

    def report(progress: Progress) -> None:
        nonlocal due
        now = time.monotonic()
        if now < due:
            return
        due = now + PROGRESS_SECONDS
        share, done, total = progress.done / max(progress.total, 1), progress.done / 1e6, progress.total / 1e6
        logger.info("loading {}: {:.0%}, {:.0f} of {:.0f} million weights", model_id, share, done, total)

    return report
