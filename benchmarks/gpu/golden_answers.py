"""How far a server that computes in 16 bits agrees with the golden answers, which are of fp32."""

from __future__ import annotations

from typing import Any

from oracle.golden import Case, cases
from support.server import Server, token_ids

from benchmarks.gpu.machine import CheckError

# The least lead of a token over the next, in nats, that rounding in this type cannot turn around, and the
# most that a log-probability may be off. Estimates from the types' precision over 30 layers.
DOUBT = {"float16": (0.1, 0.05), "bfloat16": (0.5, 0.25)}


def agreement(server: Server, dtype: str) -> dict[str, Any]:
    """Raises CheckError where an answer is wrong beyond doubt. After the first token that is open to doubt
    the two may go different ways, and nothing more is compared.
    """
    margin, tolerance = DOUBT[dtype]
    tokens = compared = 0
    worst = 0.0
    for case in cases():
        answer = server.generate(case.rendered, case.adapter, max_new_tokens=len(case.tokens))
        found = list(zip(token_ids(answer), answer["details"]["tokens"], strict=True))
        tokens += len(case.tokens)
        for index, (token, details) in enumerate(found):
            if token != case.tokens[index]:
                if case.margins[index] > margin:
                    raise CheckError(wrong(case, index, token, dtype))
                break
            compared += 1
            worst = max(worst, abs(details["logprob"] - case.logprobs[index]))
    if worst > tolerance:
        raise CheckError(f"{dtype}: a log-probability is off by {worst:.3f}, more than {tolerance}")
    return {"tokens": tokens, "equal": compared, "worst log-probability": round(worst, 4)}


def wrong(case: Case, index: int, token: int, dtype: str) -> str:
    return (
        f"{dtype}, {case.adapter or 'base'}, prompt {case.prompt}: token {index} is {token}, "
        f"not {case.tokens[index]}, which leads by {case.margins[index]:.3f}"
    )
