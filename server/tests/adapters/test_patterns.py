"""The matcher answers as `re` does, on expressions and names made up at random."""

import random
import re

import pytest

from lorikeet_server.adapters.pattern import Budget, Pattern
from lorikeet_server.errors import InvalidAdapterError

ATOMS = [
    "a", "b", ".", r"\.", r"\w", r"\d", r"\W", r"\D", r"\s", r"\S", "[ab]", "[^a]", "[a-c0-9]", r"[^\w]",
    r"[\d.]", "^", "$", r"\b", r"\B", r"\A", r"\Z", "_", "0", "(?=a)", "(?!b)", "(?<=a)", "(?<!_a)",
    "(?:)", "()", "(?!)", "|",
]  # fmt: skip
REPEATS = ["", "", "", "*", "+", "?", "*?", "+?", "??", "{2}", "{0,2}", "{1,}", "{,3}?", "{0}"]


def expression(rng: random.Random, depth: int) -> str:
    parts = []
    for _ in range(rng.randint(1, 4)):
        atom = rng.choice(ATOMS)
        if depth and rng.random() < 0.4:
            inner = expression(rng, depth - 1)
            atom = rng.choice(["({})", "(?:{})", "(?:{}|a)", "(?={})", "(?!{})", "(?P<n{n}>{})"]).format(
                inner, n=rng.randrange(10**9)
            )
        parts.append(atom + (rng.choice(REPEATS) if atom not in ("|", "^", "$") else ""))
    return "".join(parts)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("seed", range(30))
def test_as_re_answers(seed: int) -> None:
    rng = random.Random(seed)
    tried = 0
    while tried < 200:
        source = expression(rng, 2)
        try:
            compiled = re.compile(source)
        except re.error:
            with pytest.raises(InvalidAdapterError, match="not a regular expression"):
                Pattern(source, "field", Budget())
            continue
        pattern = Pattern(source, "field", Budget())
        for _ in range(5):
            text = "".join(rng.choices("ab_.0c", k=rng.randint(1, 8)))
            assert pattern.fullmatch(text) == (compiled.fullmatch(text) is not None), (source, text)
            assert pattern.match(text) == (compiled.match(text) is not None), (source, text)
        tried += 1


@pytest.mark.parametrize(
    "source", [r"(a)\1", "(?P<x>a)(?P=x)", "(a)?(?(1)b|c)", "(?>a)", "a*+", "(?i)a", "(?i:a)", "(?x) a"]
)
def test_what_cannot_be_answered_is_refused(source: str) -> None:
    with pytest.raises(InvalidAdapterError, match="which this server refuses"):
        Pattern(source, "target_modules", Budget()).fullmatch("aa")
