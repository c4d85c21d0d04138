"""The division of memory, and what a Warmup keeps."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import CapturingDevice, LateDevice
from gather_kernels import GatherKernels
from shard_driver import BLOCK, Driver, make_engine, prompt_of, tiny_model, warmup_request

from lorikeet_server.engine.graphs import buckets
from lorikeet_server.engine.memory import GPU, HOST, divide, room_for
from lorikeet_server.errors import ConfigError
from lorikeet_server.kernels import LoraTables
from lorikeet_server.pb import shard_pb2 as pb


def test_shares_where_no_flag_speaks() -> None:
    split = divide(1000, 0, 0, 0, HOST)
    assert (split.kv, split.adapters) == (400, 200)
    split = divide(1000, 200, 0, 0, GPU)
    assert (split.kv, split.adapters) == (760 - 76, 76)


def test_flags_are_honoured() -> None:
    assert divide(1000, 200, 300, 100, GPU) == divide(10**9, 0, 300, 100, HOST)
    split = divide(1000, 200, 0, 500, GPU)
    assert (split.kv, split.adapters) == (260, 500)
    assert divide(10, 0, 300, 100, HOST).kv == 300  # a host can swap
    with pytest.raises(ConfigError, match=r"--kv-cache-bytes.*--max-batch-prefill-tokens"):
        divide(1000, 200, 700, 100, GPU)


class MeasuredDevice(CapturingDevice):
    """Says what work took, in turn, and has 32 MiB."""

    discrete = True

    def __init__(self, *peaks: int) -> None:
        super().__init__()
        self._peaks, self.measured = iter(peaks), list[int]()

    def available_bytes(self) -> int:
        return 32 << 20

    def peak_bytes(self, work: Callable[[], object]) -> int:
        before = self.captures
        work()
        self.measured.append(self.captures - before)
        return next(self._peaks)


def test_what_captures_keep_is_not_given_away(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    device = MeasuredDevice(5 << 20, 3 << 20)
    engine = make_engine(tmp_path / "model", tmp_path / "store", kernels=GatherKernels(), device=device)
    request = warmup_request(kv_bytes=1 << 20)
    with torch.inference_mode():
        response = engine.warmup(request)
    assert device.measured == [0, 2], "a step, and then a capture of the largest alone"
    assert device.captures == 2 + 2 * len(buckets(8))
    blocks = request.max_step_tokens // BLOCK + request.max_sequences + 1
    needed = (8 << 20) - blocks * BLOCK * engine.kv_shape.bytes_per_token
    assert response.adapter_bytes == divide(32 << 20, needed, 1 << 20, 0, GPU).adapters


def test_what_was_measured_with_is_gone_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(tmp_path / "model")
    made: list[weakref.ref[LoraTables]] = []
    create = LoraTables.__init__

    def counted(self: LoraTables, *args: Any) -> None:
        assert not any(earlier() for earlier in made)
        create(self, *args)
        made.append(weakref.ref(self))

    engine = make_engine(tmp_path / "model", tmp_path / "store", device=MeasuredDevice(0, 0, 0, 0))
    monkeypatch.setattr(LoraTables, "__init__", counted)
    gc.disable()
    try:
        with torch.inference_mode():
            for sequences in (6, 8):
                engine.warmup(warmup_request(max_sequences=sequences, kv_bytes=1 << 20))
    finally:
        gc.enable()
    assert len(made) == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. See documentation"),
        # A graph that is made, or a kernel that is brought to the device.
        torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_device_without_room_for_a_step_says_which_flags_make_it_smaller(
    tmp_path: Path, error: RuntimeError
) -> None:
    tiny_model(tmp_path / "model")
    engine = make_engine(tmp_path / "model", tmp_path / "store", device=MeasuredDevice())

    def full(*_: object) -> None:
        raise error

    engine._model.forward = full  # type: ignore[method-assign, assignment]
    with (
        pytest.raises(ConfigError, match=r"--max-batch-prefill-tokens.*\(CUDA .*\)$"),
        torch.inference_mode(),
    ):
        engine.warmup(warmup_request())


def test_another_error_of_a_device_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"), room_for("steps", "lower a flag"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_the_largest_step_is_measured_before_memory_is_divided(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    device = LateDevice()
    engine = make_engine(tmp_path / "model", tmp_path / "store", device=device)
    rows: list[int] = []
    forward = engine._model.forward

    def counted(tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        rows.append(len(tokens))
        return forward(tokens, *rest)  # type: ignore[arg-type]

    engine._model.forward = counted  # type: ignore[method-assign]
    with torch.inference_mode():
        engine.warmup(warmup_request(max_sequences=6, max_step_tokens=250))
    assert rows[0] == 6 * (250 // 6)  # then the small ones that warm up
    assert max(rows[1:]) <= 16


def test_an_equal_warmup_keeps_its_memory(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    engine = make_engine(tmp_path / "model", tmp_path / "store")
    with torch.inference_mode():
        first = engine.warmup(warmup_request())
        driver = Driver(engine)
        (run,) = driver.generate([prompt_of(20, 1)], 3)
        cache = engine._model._blocks[0].attention.layer.k_cache
        step = pb.Step()
        driver.prefill(step, driver.admit(step, 0, prompt_of(20, 2)))
        driver.execute(step)
        assert engine.warmup(warmup_request()) == first, "and the sequence in slot 0 is forgotten"
        assert engine._model._blocks[0].attention.layer.k_cache is cache
        (again,) = Driver(engine).generate([prompt_of(20, 1)], 3)
        assert again.tokens == run.tokens
        engine.warmup(warmup_request(max_sequences=4))
        assert engine._model._blocks[0].attention.layer.k_cache is not cache
