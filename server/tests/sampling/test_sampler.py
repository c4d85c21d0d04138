"""The vectorised sampler against plain references, row by row."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from devices import Recorder
from tape import Tape
from torch.profiler import ProfilerActivity, profile
from transformers.generation.logits_process import (
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from lorikeet_server.device.host import HostDevice
from lorikeet_server.engine.sequences import sampling_params
from lorikeet_server.engine.warmup import LARGEST
from lorikeet_server.kernels import Kernels, select
from lorikeet_server.sampling import filters
from lorikeet_server.sampling.params import SamplingParams, SlotParams
from lorikeet_server.sampling.plan import SamplingPlan
from lorikeet_server.sampling.sampler import Sampled, sample

VOCAB = 1000
HOST = HostDevice()
KERNELS = select("reference")

MIXES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.5, "top_k": 1},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_k": 400},
    {"temperature": 0.8, "top_p": 0.5},
    {"temperature": 5.0, "top_p": 0.99},
    {"temperature": 1.0, "top_p": 0.001},
    {"temperature": 1.0, "typical_p": 0.3},
    {"temperature": 1.3, "typical_p": 0.95},
    {"temperature": 0.9, "top_k": 300, "typical_p": 0.9},
    {"temperature": 1.2, "top_k": 50, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 700, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 30, "top_p": 0.9, "typical_p": 0.5},
    {"temperature": 1.0, "top_p": 0.8, "typical_p": 0.7},
    {"temperature": 1e-30},
    {"temperature": 1e-30, "top_p": 0.9},
]


def logits_of(rows: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def slot_params(rows: list[dict[str, Any]]) -> SlotParams:
    params = SlotParams(len(rows), VOCAB, HOST)
    for slot, row in enumerate(rows):
        params.admit(slot, SamplingParams(seed=slot, **row), (), 0)
    return params


def run(
    logits: torch.Tensor,
    params: SlotParams,
    slots: list[int],
    position: int = 5,
    kernels: Kernels = KERNELS,
) -> Sampled:
    plan = SamplingPlan.of(params, np.array(slots), np.full(len(slots), position), HOST.parcel(0))
    return sample(kernels, kernels.greedy(logits), logits, params, plan)


def kept_distribution(logits: torch.Tensor, row: dict[str, Any]) -> torch.Tensor:
    """What transformers' warpers leave of one row, as probabilities."""
    scores = (logits - logits.max()).double().unsqueeze(0) / row["temperature"]
    ids = torch.zeros(1, 1, dtype=torch.long)
    if row.get("top_k"):
        scores = TopKLogitsWarper(row["top_k"])(ids, scores)
    if row.get("top_p", 1.0) < 1:
        scores = TopPLogitsWarper(row["top_p"])(ids, scores)
    if row.get("typical_p", 1.0) < 1:
        scores = TypicalLogitsWarper(row["typical_p"])(ids, scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize("row", MIXES[1:], ids=str)
def test_draws_from_what_the_filters_leave(row: dict[str, Any]) -> None:
    """Over an even grid of uniforms, each token comes up in proportion to its probability."""
    grid = 4000
    logits = logits_of(1).expand(grid, VOCAB)
    params = slot_params([row] * grid)
    expected = kept_distribution(logits[0], row)
    patched = (np.arange(grid) + 0.5) / grid
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorikeet_server.sampling.plan.uniforms", lambda *_: patched)
        tokens = run(logits, params, list(range(grid))).tokens
    share = torch.bincount(tokens, minlength=VOCAB).double() / grid
    assert set(tokens.tolist()) <= set(expected.nonzero().flatten().tolist())
    assert (share - expected).abs().max() <= 1.01 / grid


def test_rows_do_not_see_each_other() -> None:
    logits = logits_of(len(MIXES), seed=1)
    params = slot_params(MIXES)
    together = run(logits, params, list(range(len(MIXES))))
    for slot in range(len(MIXES)):
        alone = run(logits[slot : slot + 1], params, [slot])
        assert alone.tokens.tolist() == together.tokens[slot : slot + 1].tolist()
    backwards = list(range(len(MIXES)))[::-1]
    assert run(logits.flip(0), params, backwards).tokens.flip(0).tolist() == together.tokens.tolist()


def test_a_bias_is_of_its_own_row() -> None:
    logits, slots = logits_of(1 + len(MIXES), seed=1), list(range(1 + len(MIXES)))
    bias = {"bias_tokens": (7,), "bias_values": (100.0,)}
    biased = run(logits, slot_params([{"temperature": 0.0, **bias}, *MIXES]), slots).tokens
    plain = run(logits, slot_params([{"temperature": 0.0}, *MIXES]), slots).tokens
    assert int(biased[0]) == 7 != int(plain[0])
    assert torch.equal(biased[1:], plain[1:])


def test_greedy_rows_and_logprobs() -> None:
    logits = logits_of(6)
    params = slot_params([{"temperature": float(i % 2), "top_logprobs": i} for i in range(6)])
    sampled = run(logits, params, [5, 0, 3, 2, 4, 1])
    expected = logits.log_softmax(-1)
    for row, slot in enumerate([5, 0, 3, 2, 4, 1]):
        token = int(sampled.tokens[row])
        if slot % 2 == 0:
            assert token == int(logits[row].argmax())
        assert float(sampled.logprobs[row]) == pytest.approx(float(expected[row, token]), abs=1e-5)
    assert sampled.alternative_rows.tolist() == [0, 2, 3, 4, 5]
    assert sampled.alternative_counts.tolist() == [5, 3, 2, 4, 1]
    assert sampled.alternative_tokens is not None and sampled.alternative_logprobs is not None
    best = expected[sampled.alternative_rows].topk(5)
    assert torch.equal(sampled.alternative_tokens, best.indices)
    assert torch.allclose(sampled.alternative_logprobs, best.values, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_candidates_give_the_token_of_the_full_sort(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for a device, and where scores tie, as those computed in 16 bits do."""
    logits = logits_of(400, seed=4)
    if tied:
        logits = (logits * 2).round() / 2
        logits[::7] = 0.0
    params, slots = slot_params([MIXES[slot % len(MIXES)] for slot in range(400)]), list(range(400))
    with Recorder(Tape()):
        tokens = run(logits, params, slots).tokens
    monkeypatch.setattr(filters, "CANDIDATES", VOCAB)
    assert torch.equal(run(logits, params, slots).tokens, tokens)


def test_the_cpu_backend_gives_the_tokens_of_the_reference() -> None:
    logits, slots = logits_of(800, seed=6), list(range(800))
    logits[::5] /= 10  # where nearly everything stays
    params = slot_params([MIXES[slot % len(MIXES)] for slot in slots])
    native = run(logits, params, slots, kernels=select("cpu"))
    assert torch.equal(native.tokens, run(logits, params, slots).tokens)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", MIXES, ids=str)
def test_a_row_that_is_not_finite(poison: float, row: dict[str, Any]) -> None:
    logits = logits_of(3)
    params = slot_params([row] * 3)
    clean = run(logits, params, [0, 1, 2])
    logits[1, 7] = poison
    sampled = run(logits, params, [0, 1, 2])
    assert sampled.finite.tolist() == [True, False, True]
    assert sampled.tokens[[0, 2]].tolist() == clean.tokens[[0, 2]].tolist()
    assert 0 <= int(sampled.tokens[1]) < VOCAB


def test_slots_are_forgotten() -> None:
    params = slot_params([{"repetition_penalty": 2.0, "bias_tokens": [3], "bias_values": [50.0]}, {}])
    logits = logits_of(2)
    assert run(logits, params, [0, 1]).tokens[0] == 3
    params.release(0)
    params.admit(0, SamplingParams(), (), 0)
    assert torch.equal(run(logits, params, [0, 1]).tokens, logits.argmax(-1))
    assert not params.bias and not params.penalties.in_use


def test_penalty_lanes_are_reused_clean() -> None:
    params = SlotParams(40, VOCAB, HOST)
    penalised = SamplingParams(frequency_penalty=1000.0)
    best = int(logits_of(1).argmax())
    for _ in range(3):
        for slot in range(40):
            params.admit(slot, penalised, [best], 1)
        assert best not in run(logits_of(1).expand(40, VOCAB), params, list(range(40))).tokens.tolist()
        for slot in range(40):
            params.admit(slot, penalised, [], 0)
        assert set(run(logits_of(1).expand(40, VOCAB), params, list(range(40))).tokens.tolist()) == {best}
        params.clear()


def most_held(work: Callable[[], object]) -> int:
    """The most bytes that torch holds at a time of what is allocated meanwhile, also within an operation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    changes = sorted((each.start_ns(), each.nbytes()) for each in events if each.name() == "[memory]")
    return max(accumulate(size for _, size in changes))


def test_nothing_takes_more_memory_than_what_a_warmup_measures() -> None:
    """Of many rows, in as many bytes of each token."""
    rows = 256
    logits = logits_of(rows)

    def bytes_of(asked: SamplingParams) -> float:
        def work() -> None:
            params = SlotParams(rows, VOCAB, HOST)
            for slot in range(rows):
                params.admit(slot, asked, (), 0)
            run(logits, params, list(range(rows)))

        return most_held(work) / logits.numel()

    largest = bytes_of(sampling_params(LARGEST))
    mixes: list[dict[str, Any]] = [
        *MIXES,
        {"top_logprobs": 20},
        {"temperature": 1.0, "presence_penalty": 1.0},
    ]
    for mix in mixes:
        assert bytes_of(SamplingParams(**mix)) <= largest, mix
    assert largest < 40
