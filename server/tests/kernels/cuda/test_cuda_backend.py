"""The CUDA backend under a whole engine, on a CPU: its adapter kernels under emulation, FlashInfer by a
stand-in, decodes through the memory that stays in its place."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_conformance
import torch
from cuda_target import Target
from devices import RerunDevice
from flashinfer_stand_in import LIBRARY
from lora_cases import fill
from shard_driver import Driver, Run, make_engine, prompt_of, tiny_model, warmup_request
from tiny_adapters import ATTENTION, save_adapter

from lorikeet_server.kernels import AttentionLayer, AttentionShape, Kernels, LoraModule, Product, select
from lorikeet_server.kernels.cuda import DeviceLoraTables, backend, toolkit
from lorikeet_server.pb import shard_pb2 as pb

CPU = torch.device("cpu")
ADAPTERS = {"wide": {"r": 16}, "attention": {"r": 3, "target_modules": ATTENTION}}
SIZES = {
    "vocab_size": 200,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "use_sliding_window": True,  # in the second layer, and shorter than the prompts
    "sliding_window": 5,
    "max_window_layers": 1,
}


@pytest.fixture
def kernels(emulated: Target, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132)
    )
    monkeypatch.setattr(backend, "open_library", lambda _: emulated.library)
    monkeypatch.setattr(backend, "open_flashinfer", lambda *_: LIBRARY)
    return backend.CudaKernels(CPU, torch.float16)


def runs_of(path: Path, kernels: Kernels, device: RerunDevice) -> list[Run]:
    engine = make_engine(
        path / "model",
        path / "store",
        roots=[path / "adapters"],
        kernels=kernels,
        mode="float16",
        device=device,
    )
    with torch.inference_mode():
        engine.warmup(warmup_request(max_sequences=4, max_step_tokens=64, max_sequence_tokens=64))
    driver, moves = Driver(engine), []
    for slot, name in enumerate(ADAPTERS):
        *_, last = engine.library.fetch("local", name, 0)
        engine.library.stage(last.digest)
        moves.append(pb.AdapterMove(slot=slot, digest=last.digest))
    step = pb.Step(moves=moves)
    runs = [
        driver.admit(step, slot, prompt_of(6 + 3 * slot, slot), adapter_slot=adapter, prompt_logprobs=True)
        for slot, adapter in enumerate([-1, 0, 1])
    ]
    for run in runs:
        driver.prefill(step, run)
    before = device.copies
    driver.execute(step)
    for chosen in ([0], [2, 1, 0], [2, 1, 0], [0, 1]):
        step = pb.Step()
        driver.decode(step, *(runs[i] for i in chosen))
        driver.execute(step)
    assert device.copies - before == 5  # one for each step
    return runs


def test_an_engine_over_it_gives_what_the_reference_gives(kernels: Kernels, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "qwen2", **SIZES)
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        save_adapter(model, tmp_path / "adapters" / name, seed, **settings)
    assert kernels.captures([AttentionShape(2, 1, 64, 1.0)]) and kernels.name == "cuda-sm90-flashinfer"
    runs = runs_of(tmp_path, kernels, RerunDevice())
    expected = runs_of(tmp_path, select("reference", dtype=torch.float16), RerunDevice())
    for run, other in zip(runs, expected, strict=True):
        assert run.errors == []
        assert run.prompt_logprobs == pytest.approx(other.prompt_logprobs, abs=0.02)
        # Up to where two tokens are equally likely in float16, and the sequences part.
        parted = [a != b for a, b in zip(run.tokens, other.tokens, strict=True)]
        compared = parted.index(True) + 1 if any(parted) else len(parted)
        assert compared > 1
        assert run.logprobs[:compared] == pytest.approx(other.logprobs[:compared], abs=0.02)


@pytest.mark.parametrize("name", ["test_rotation", "test_greedy", "test_fixed_plans_stay_in_place"])
def test_what_a_gpu_is_tested_by(kernels: Kernels, name: str) -> None:
    """So that it fails there for the device's sake alone."""
    with torch.inference_mode():
        getattr(test_conformance, name)(test_conformance.Pair(kernels, select("reference")))


@pytest.mark.parametrize(("rows", "most"), [(5, None), (5, 3), (40, 3), (40, 50), (300, None)])
def test_adapters_beside_the_base_add_what_they_add_behind_it(
    kernels: Kernels, rows: int, most: int | None
) -> None:
    """Left to the reader where the ops are captured, and added by cuBLAS where a step has many rows."""
    modules = [LoraModule(72, (64, 24))]
    tables = kernels.lora_tables(modules, 50, 300, 16, torch.float16)
    assert isinstance(tables, DeviceLoraTables)
    for slot in range(2):
        fill(tables, slot, {0: 16, 1: 8})
    tables.commit()
    packed = kernels.pack_linear(torch.randn(88, 72) / 9, "float16")
    x, (table,) = torch.randn(rows, 72).half(), tables.tables
    slots = [(-1, 0, 1)[row % 3] for row in range(rows)]
    product = kernels.adapted_linear(x, packed, table, tables.batcher()(slots, most))
    if rows == 5 and most is None:
        assert product is None  # one after the other
        return
    assert product is not None and (product.delta is not None) == (most is not None)
    expected = kernels.linear(x, packed)
    kernels.lora(expected, x, table, tables.batcher()(slots))
    torch.testing.assert_close(product.whole(), expected, rtol=2.0**-9, atol=2.0**-8)


def test_what_reads_a_delta_adds_it(kernels: Kernels) -> None:
    """With a kernel of its own, or, where the widths do not allow that, as the reference does."""
    reference = select("reference", dtype=torch.float16)
    for width in (64, 36):
        y, delta = torch.randn(2, 3, 2 * width).half()
        for name in ("silu_mul", "gelu_mul"):
            result, expected = (
                getattr(each, name)(Product(y.clone(), delta)) for each in (kernels, reference)
            )
            torch.testing.assert_close(result, expected, rtol=0.01, atol=0.01)
        x, more, residual = torch.randn(3, 3, width).half()
        found, wanted = (
            each.add_rms_norm(Product(x.clone(), more), residual.clone(), more[0].clone(), 1e-5)
            for each in (kernels, reference)
        )
        for pair in zip(found, wanted, strict=True):
            torch.testing.assert_close(*pair, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("width", [64, 24])
def test_heads_of_every_width_are_rotated(kernels: Kernels, width: int) -> None:
    """The kernel takes multiples of 16; torch takes the others."""
    qkv, places = torch.randn(3, 4 * width).half(), torch.tensor([5, 2, 7])
    caches, cos_sin = torch.zeros(2, 3, 4, 1, width).half(), torch.randn(9, width)
    layer = AttentionLayer(AttentionShape(2, 1, width, 1.0), *caches, cos_sin)
    results = []
    for each in (kernels, select("reference", dtype=torch.float16)):
        rows = qkv.clone()
        each.rope_and_cache(Product(rows), layer, torch.tensor([0, 8, 3]), places)
        results.append((rows, caches.clone()))
        caches.zero_()
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=2.0**-10, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1.0, 0.5])
def test_norms_are_those_of_the_reference(kernels: Kernels, offset: float) -> None:
    x, residual, weight = torch.randn(3, 64).half(), torch.randn(3, 64).half(), torch.randn(64).half()
    reference = select("reference", dtype=torch.float16)
    assert torch.equal(kernels.rms_norm(x, weight, 1e-6, offset), reference.rms_norm(x, weight, 1e-6, offset))
    expected = reference.add_rms_norm(Product(x), residual.clone(), weight, 1e-6, offset)
    assert all(map(torch.equal, kernels.add_rms_norm(Product(x), residual, weight, 1e-6, offset), expected))


def test_top_p_is_what_the_reference_leaves(kernels: Kernels) -> None:
    for vocab in (200, 5000):
        probability, top_p = torch.randn(3, vocab).softmax(-1), torch.tensor([0.1, 0.5, 0.9])
        left = kernels.keep_top_p(probability, top_p)
        expected = select("reference").keep_top_p(probability, top_p)
        torch.testing.assert_close(
            left / left.sum(-1, keepdim=True), expected / expected.sum(-1, keepdim=True)
        )


def test_scratch_is_for_the_largest_rank_that_is_accepted(kernels: Kernels, tmp_path: Path) -> None:
    tiny_model(tmp_path / "model", **SIZES)
    scratch = {}
    for rank in (512, 16):
        engine = make_engine(
            tmp_path / "model", tmp_path / "store", kernels=kernels, mode="float16", device=RerunDevice()
        )
        engine.library.model = replace(engine.library.model, max_rank=rank)
        with torch.inference_mode():
            engine.warmup(warmup_request(max_sequences=4, max_step_tokens=64, max_sequence_tokens=64))
        adapters = engine._model.adapters
        assert isinstance(adapters, DeviceLoraTables) and adapters.max_rank == rank
        scratch[rank] = adapters.scratch.numel()
    assert scratch[512] == 32 * scratch[16] > 0


def test_what_is_missing_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_toolkit(*_: object) -> None:
        raise OSError("no nvcc")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(backend, "open_library", no_toolkit)
    monkeypatch.setattr(toolkit, "find", no_toolkit)
    kernels = backend.CudaKernels(CPU, torch.bfloat16)
    assert "no CUDA kernels for adapters" in caplog.text and "no FlashInfer" in caplog.text
    assert not kernels.captures([AttentionShape(2, 1, 64, 1.0)])
    assert kernels.lora_layout == select("reference").lora_layout
    x = torch.randn(3, 64).bfloat16()
    assert torch.equal(
        kernels.rms_norm(x, x[0], 1e-6), select("reference", dtype=torch.bfloat16).rms_norm(x, x[0], 1e-6)
    )


def test_an_older_device_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    for name in ("open_library", "open_flashinfer"):
        monkeypatch.setattr(backend, name, lambda *given: opened.append(given))
    kernels = backend.CudaKernels(CPU, torch.bfloat16)
    assert "far slower: they need compute capability 8.0, and this device has 7.5" in caplog.text
    assert not opened and kernels.name == "cuda-sm75"
    shape = AttentionShape(2, 1, 64, 1.0)
    assert not kernels.captures([shape])
    kernels.reserve([shape], 8)
    assert kernels.lora_layout == select("reference").lora_layout
