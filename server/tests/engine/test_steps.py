"""What a step gives does not depend on how the router cut the work into steps."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from shard_driver import (
    BLOCK,
    Driver,
    expected_logprobs,
    expected_tokens,
    make_engine,
    prompt_of,
    tiny_model,
    warmup_request,
)

from lorikeet_server.engine.engine import Engine
from lorikeet_server.pb import shard_pb2 as pb

SAMPLED = pb.Sampling(temperature=0.9, top_p=0.95, top_k=40, seed=11)


@pytest.fixture(scope="module", params=["reference", "cpu"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Engine]:
    path = tmp_path_factory.mktemp("model")
    return tiny_model(path, tie_word_embeddings=True), make_engine(path, path / "store", request.param)


@pytest.fixture
def driver(served: tuple[Any, Engine]) -> Iterator[Driver]:
    served[1].warmup(warmup_request())
    yield Driver(served[1])


@pytest.mark.parametrize("chunk", [1, 7, 16, 50])
def test_chunks_change_nothing(driver: Driver, chunk: int) -> None:
    prompts = [prompt_of(60, 1), prompt_of(33, 2), prompt_of(1, 3)]
    settings = {"prompt_logprobs": True, "prompt_top_logprobs": 1}
    whole = driver.generate(prompts, 10, **settings)
    cut = driver.generate(prompts, 10, chunk=chunk, **settings)
    for a, b in zip(whole, cut, strict=True):
        assert a.tokens == b.tokens and a.errors == b.errors == []
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert a.prompt_logprobs == pytest.approx(b.prompt_logprobs, abs=1e-4)
        assert len(b.prompt_logprobs) == len(b.prompt) - 1
        assert [token for token, _ in a.prompt_top] == [token for token, _ in b.prompt_top]


def test_prefill_and_decode_mix(served: tuple[Any, Engine], driver: Driver) -> None:
    """A prompt arrives in chunks while others decode; everyone's tokens are those it would have alone."""
    prompts = [prompt_of(length, seed) for seed, length in enumerate((20, 45, 90))]
    step = pb.Step()
    first = driver.admit(step, 5, prompts[0])
    driver.prefill(step, first)
    driver.execute(step)
    step = pb.Step()
    second, third = driver.admit(step, 0, prompts[1]), driver.admit(step, 7, prompts[2])
    while third.length < len(third.prompt):
        for run in (second, third):
            if run.length < len(run.prompt):
                driver.prefill(step, run, 13)
        driver.decode(step, first, *([second] if second.tokens else []))
        driver.execute(step)
        step = pb.Step()
    for _ in range(5):
        step = pb.Step()
        driver.decode(step, third, first, second)
        driver.execute(step)
    for run in (first, second, third):
        assert run.tokens == expected_tokens(served[0], run.prompt, len(run.tokens))


def test_prefix_reuse(served: tuple[Any, Engine], driver: Driver) -> None:
    prompt = prompt_of(40, 4)
    step = pb.Step()
    first = driver.admit(step, 1, prompt)
    driver.prefill(step, first)
    driver.execute(step)
    step = pb.Step()
    second = driver.admit(step, 2, prompt[:35] + prompt_of(20, 5), cached=first)
    assert second.length == 2 * BLOCK
    driver.prefill(step, second)
    driver.decode(step, first)
    driver.execute(step)
    for _ in range(6):
        step = pb.Step()
        driver.decode(step, second, first)
        driver.execute(step)
    assert first.tokens == expected_tokens(served[0], first.prompt, 8)
    assert second.tokens == expected_tokens(served[0], second.prompt, 7)


def test_two_steps_in_flight(served: tuple[Any, Engine], driver: Driver) -> None:
    """A decode names no token: its input is what its slot sampled last."""
    prompt = prompt_of(16, 6)
    step = pb.Step()
    run = driver.admit(step, 3, prompt)
    driver.prefill(step, run)
    steps = [step]
    for _ in range(4):
        steps.append(pb.Step())
        driver.decode(steps[-1], run)
    for step in steps:
        driver.execute(step)
    assert run.tokens == expected_tokens(served[0], prompt, 5)


def test_sampling_ignores_batch_mates_and_preemption(driver: Driver) -> None:
    prompt = prompt_of(30, 7)
    (alone,) = driver.generate([prompt], 12, sampling=SAMPLED)
    mates = driver.generate([prompt_of(9, 8), prompt, prompt_of(50, 9)], 12, chunk=11, sampling=SAMPLED)
    assert mates[1].tokens == alone.tokens
    # Preempted after five tokens, recomputed with them as part of the prompt.
    (again,) = driver.generate([prompt + alone.tokens[:5]], 7, sampling=SAMPLED)
    assert again.tokens == alone.tokens[5:]
    (other,) = driver.generate([prompt], 12, sampling=pb.Sampling(temperature=0.9, seed=12))
    assert other.tokens != alone.tokens


def test_penalties_follow_history(served: tuple[Any, Engine], driver: Driver) -> None:
    """Against transformers' own processor and the usual formulas, with a history that was partly output."""
    prompt = prompt_of(25, 10)
    sampling = pb.Sampling(repetition_penalty=1.7, frequency_penalty=0.4, presence_penalty=0.3)
    settings = {"sampling": sampling, "history": prompt, "history_output": 0}
    (run,) = driver.generate([prompt], 15, **settings)
    tokens, counts = list(prompt), torch.zeros(199)
    for _ in range(15):
        with torch.no_grad():
            scores = served[0](torch.tensor([tokens])).logits[0, -1]
        seen = torch.tensor(sorted(set(tokens)))
        scores[seen] = torch.where(scores[seen] < 0, scores[seen] * 1.7, scores[seen] / 1.7)
        scores -= 0.4 * counts + 0.3 * (counts > 0)
        tokens.append(int(scores.argmax()))
        counts[tokens[-1]] += 1
    assert run.tokens == tokens[25:]
    # The model's own log-probabilities are reported, not the penalised ones.
    first = expected_logprobs(served[0], prompt)[-1, run.tokens[0]]
    assert run.logprobs[0] == pytest.approx(float(first), abs=1e-4)
    whole = prompt + run.tokens[:6]
    settings |= {"history": whole, "history_output": 6}
    (again,) = driver.generate([whole], 9, **settings)
    assert again.tokens == run.tokens[6:]


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 3}, {"typical_p": 0.9}], ids=str)
def test_the_smallest_penalty_leaves_a_distribution(driver: Driver, filters: dict[str, Any]) -> None:
    """It divides scores by nearly nothing: the likeliest token of the history is all that is left."""
    prompt = prompt_of(25, 10)
    sampling = pb.Sampling(temperature=1.0, repetition_penalty=1e-40, seed=3, **filters)
    (run,) = driver.generate([prompt], 8, sampling=sampling, history=prompt)
    assert set(run.tokens) <= set(prompt)


def test_alternatives_that_tie_are_the_same_in_a_prompt_as_in_an_output(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As logits of 16 bits often do. The lowest token comes first, whatever else is in the step."""
    logits = driver.engine._model.logits
    monkeypatch.setattr(driver.engine._model, "logits", lambda *rest: logits(*rest).round())
    prompt = prompt_of(70, 15)
    (whole,) = driver.generate([prompt], 1, prompt_logprobs=True, prompt_top_logprobs=4)
    lengths = range(1, 70, 10)
    sampling = pb.Sampling(top_logprobs=4)
    outputs = driver.generate([prompt[:length] for length in lengths], 1, sampling=sampling)
    for length, output in zip(lengths, outputs, strict=True):
        told = whole.prompt_top[4 * (length - 1) : 4 * length]
        assert [token for token, _ in told] == [token for token, _ in output.alternatives[0]]
        assert told == sorted(told, key=lambda entry: (-entry[1], entry[0]))


def test_bias(driver: Driver) -> None:
    sampling = pb.Sampling(bias_tokens=[42, 43], bias_values=[100.0, -100.0])
    runs = driver.generate([prompt_of(5, 11)], 4, sampling=sampling)
    assert runs[0].tokens == [42] * 4
    assert max(runs[0].logprobs) < -0.1


def test_a_poisoned_row_fails_alone(served: tuple[Any, Engine], driver: Driver) -> None:
    """A NaN in one sequence's cache reaches that sequence only, also after its blocks are used again."""
    prompts = [prompt_of(20, 12), prompt_of(20, 13)]
    step = pb.Step()
    good, bad = (driver.admit(step, slot, prompt) for slot, prompt in enumerate(prompts))
    for run in (good, bad):
        driver.prefill(step, run)
    driver.execute(step)
    for cache in (
        driver.engine._model._blocks[1].attention.layer.v_cache,
        driver.engine._model._blocks[1].attention.layer.k_cache,
    ):
        cache[bad.blocks] = torch.nan
    for _ in range(3):
        step = pb.Step()
        driver.decode(step, good, bad)
        driver.execute(step)
    assert bad.errors == ["numeric_error"] * 3 and good.errors == []
    assert good.tokens == expected_tokens(served[0], good.prompt, 4)
    driver.free.extend(bad.blocks)
    driver.release(bad)
    step = pb.Step()
    heir = driver.admit(step, 1, prompt_of(20, 14))
    driver.prefill(step, heir)
    driver.execute(step)
    assert set(heir.blocks) == set(bad.blocks)
    step = pb.Step()
    driver.decode(step, heir)
    driver.execute(step)
    assert heir.errors == [] and heir.tokens == expected_tokens(served[0], heir.prompt, 2)


def test_an_exception_fails_the_step_only(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    step = pb.Step()
    runs = [driver.admit(step, slot, prompt_of(20, slot)) for slot in range(2)]
    driver.prefill(step, runs[0])
    driver.prefill(step, runs[1], 5)
    with monkeypatch.context() as patch:
        patch.setattr(driver.engine._model, "forward", lambda *_: 1 / 0)
        result = driver.execute(step)
    assert list(result.slot) == [0]
    assert [(error.slot, error.code) for error in result.errors] == [(0, "internal"), (1, "internal")]
    driver.release(*runs)
    (after,) = driver.generate([prompt_of(20, 1)], 3)
    assert after.errors == [] and len(after.tokens) == 3
