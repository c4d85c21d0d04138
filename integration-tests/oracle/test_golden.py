"""The golden file belongs to the committed adapters, is unambiguous, and is what PEFT still says."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lorikeet_server.weights.export import export
from lorikeet_server.weights.prepare import prepare
from oracle.golden import adapter_digests, cases

ADAPTERS = Path(__file__).parents[2] / "examples" / "adapters"


def test_the_adapters_are_those_of_the_golden_file() -> None:
    found = {
        path.parent.name: sha256(path.read_bytes()).hexdigest()
        for path in ADAPTERS.glob("*/adapter_model.safetensors")
    }
    assert found == adapter_digests(), "run integration-tests/oracle/generate.py"


def test_every_answer_is_beyond_doubt() -> None:
    for case in cases():
        assert case.stable == len(case.tokens), (case.adapter, case.prompt, min(case.margins))


def test_adapters_answer_otherwise_than_the_base_and_each_other() -> None:
    answers: dict[str, list[list[int]]] = {}
    for case in cases():
        answers.setdefault(case.prompt, []).append(case.tokens)
    for prompt, tokens in answers.items():
        assert len({tuple(answer) for answer in tokens}) >= 4, prompt


def test_prompts_have_the_tokens_of_our_tokenizer_files(tmp_path: Path) -> None:
    directory = prepare("smollm2", None, tmp_path).tokenizer_path
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for case in cases():
        assert tokenizer.encode(case.rendered).ids == case.ids
    assert max(len(case.ids) for case in cases()) > 200


@pytest.mark.slow
def test_peft_still_says_so(tmp_path: Path) -> None:
    from oracle.generate import Oracle
    from oracle.prompts import PROMPTS

    model = Oracle(export("smollm2", tmp_path / "model"))
    prompts = {prompt.name: prompt for prompt in PROMPTS}
    for case in cases():
        if case.prompt not in ("person", "plain"):
            continue
        answer = model.answer(prompts[case.prompt], case.adapter)
        assert answer.tokens == case.tokens
        assert answer.logprobs == pytest.approx(case.logprobs, abs=1e-4)
