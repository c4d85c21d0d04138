"""The server, with SmolLM2 in fp32 and the example adapters, answers as transformers and PEFT do."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.server import Server, token_ids

from oracle.golden import Case, cases

CASES = cases()
# Stands for a character that the length limit cut in two, if anything does.
CUT = "\ufffd"


def named(case: Case) -> str:
    return f"{case.adapter or 'base'}-{case.prompt}"


def check(server: Server, case: Case) -> None:
    answer = server.generate(case.rendered, case.adapter, max_new_tokens=len(case.tokens))
    assert token_ids(answer) == case.tokens, named(case)
    details = answer["details"]
    logprobs = [token["logprob"] for token in details["tokens"]]
    assert logprobs == pytest.approx(case.logprobs, abs=1e-3), named(case)
    assert details["prompt_tokens"] == len(case.ids)
    assert details["finish_reason"] == case.finish
    assert answer["generated_text"].rstrip(CUT) == case.answer.rstrip(CUT)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_alone(smollm2: Server, case: Case) -> None:
    check(smollm2, case)


def test_all_at_once(smollm2: Server) -> None:
    """Every prompt with every adapter in flight together, in an order that mixes them."""
    shuffled = random.Random(11).sample(CASES, len(CASES))
    with ThreadPoolExecutor(len(shuffled)) as pool:
        for done in [pool.submit(check, smollm2, case) for case in shuffled]:
            done.result()


@pytest.mark.parametrize("case", [case for case in CASES if case.chat], ids=named)
def test_chat(smollm2: Server, case: Case) -> None:
    """The chat route renders the same prompt and gives the same text."""
    body = {"model": case.adapter or "smollm2", "max_tokens": len(case.tokens), "temperature": 0}
    messages = [{"role": "user", "content": case.text}]
    response = smollm2.client.post("/v1/chat/completions", json={**body, "messages": messages})
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    assert choice["message"]["content"].rstrip(CUT) == case.answer.rstrip(CUT)
    assert choice["finish_reason"] == ("stop" if case.finish == "eos_token" else "length")
    assert response.json()["usage"]["prompt_tokens"] == len(case.ids)
