"""The matcher answers as `re` does, on expressions and names made up at random; what people write for models
of 80 layers is served, and what nobody should write is refused, both in little time.
"""

import json
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from lorikeet_server.adapters.config import AdapterConfig, parse_config
from lorikeet_server.adapters.module_names import ModuleNames
from lorikeet_server.adapters.pattern import Matcher
from lorikeet_server.errors import InvalidAdapterError

ATOMS = [
    "a", "b", ".", r"\.", r"\w", r"\d", r"\W", r"\D", r"\s", r"\S", "[ab]", "[^a]", "[a-c0-9]", r"[^\w]",
    r"[\d.]", "^", "$", r"\b", r"\B", r"\A", r"\Z", "_", "0", "(?=a)", "(?!b)", "(?<=a)", "(?<!_a)",
    "(?:)", "()", "(?!)", "|",
]  # fmt: skip
REPEATS = ["", "", "", "*", "+", "?", "*?", "+?", "??", "{2}", "{0,2}", "{1,}", "{,3}?", "{0}"]


LEAVES = [
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
]  # fmt: skip
LAYERS = 80
MODULES = [f"model.layers.{layer}.{leaf}" for layer in range(LAYERS) for leaf in LEAVES]
NAMES = ModuleNames([*MODULES, "lm_head"])


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
        texts = ["".join(rng.choices("ab_.0c", k=rng.randint(1, 6))) for _ in range(6)]
        names = ModuleNames(texts)
        try:
            compiled = re.compile(source)
        except re.error:
            with pytest.raises(InvalidAdapterError, match="not a regular expression"):
                Matcher(names).fullmatch(source, "field")
            continue
        # As PEFT writes it.
        ending = re.compile(rf"(.*\.)?({source})$")
        matcher = Matcher(names)
        full = set(names.ending_at(matcher.fullmatch(source, "field")))
        assert full == {text for text in texts if compiled.fullmatch(text)}, source
        ends = set(names.ending_at(matcher.ending(source, "field")))
        assert ends == {text for text in texts if ending.match(text)}, source
        tried += 1


KEYS = [
    "q_proj", "proj", "_proj", "self_attn.q_proj", "self_attn_q_proj", "layers.1.self_attn.q_proj", "......",
    "", ".*", "^q_proj", "^model.layers.7.mlp.up_proj$", "lm_head", "lm.head", r"layers\.1.\.mlp\.up_proj",
    ".q_proj", "q_proj)|(model.*up", "x)|(lm", r"x)|(.*\.v_pr", "$", "^", "q$_proj", "a-b", "(?:)q_proj",
    "layers.(1|2)..*",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_keys_as_peft_reads_them(key: str) -> None:
    ending = re.compile(rf"(.*\.)?({key})$")
    found = set(NAMES.ending_at(Matcher(NAMES).ending(key, "rank_pattern")))
    assert found == {name for name in [*MODULES, "lm_head"] if ending.match(name)}


@pytest.mark.parametrize(
    "source", [r"(a)\1", "(?P<x>a)(?P=x)", "(a)?(?(1)b|c)", "(?>a)", "a*+", "(?i)a", "(?i:a)", "(?x) a"]
)
def test_what_cannot_be_answered_is_refused(source: str) -> None:
    with pytest.raises(InvalidAdapterError, match="which this server refuses"):
        Matcher(ModuleNames(["aa"])).fullmatch(source, "target_modules")


def test_a_lookbehind_without_one_width_is_no_expression() -> None:
    with pytest.raises(InvalidAdapterError, match="fixed-width"):
        Matcher(NAMES).fullmatch("nothing(?<=a+)", "target_modules")


def each(template: str) -> dict[str, int]:
    """A pattern for each module of the model, whose value is its layer's."""
    return {
        template.format(layer=layer, leaf=leaf.split(".")[1], path=leaf): layer + 1
        for layer in range(LAYERS)
        for leaf in LEAVES
    }


def per_layer(template: str) -> dict[str, int]:
    return {template.format(layer=layer): layer + 1 for layer in range(LAYERS)}


SERVED = {
    "EVA": each("model.layers.{layer}.{path}"),
    "escaped names": each(r"model\.layers\.{layer}\.{path}"),
    "each layer": per_layer(r".*layers\.{layer}\..*"),
    "each layer from the beginning": per_layer(r"model\.layers\.{layer}\..*"),
    "each layer, unescaped": per_layer(r"layers.{layer}\..*"),
    "each module": each(r".*layers\.{layer}\..*{leaf}"),
    "each module in groups": each(r"model\.layers\.({layer})\.(self_attn|mlp)\.({leaf})"),
}


def parsed(**options: Any) -> AdapterConfig:
    base = {"peft_type": "LORA", "target_modules": [leaf.split(".")[1] for leaf in LEAVES]}
    return parse_config(json.dumps(base | options).encode(), 512, NAMES)


@pytest.mark.parametrize("name", SERVED)
def test_expressions_for_80_layers(name: str) -> None:
    patterns = SERVED[name]
    before = time.thread_time()
    config = parsed(rank_pattern=patterns, alpha_pattern=patterns)
    assert time.thread_time() - before < 1  # 0.01 to 0.07 s where nothing else runs
    for module in MODULES:
        layer = int(module.split(".")[2])
        assert config.scaling(module).rank == layer + 1 and config.scaling(module).scale == 1.0


def numbered(template: str, count: int) -> Callable[[str], dict[str, int]]:
    return lambda side: {f"{template}{side}{index}": 8 for index in range(count)}


# 0.05 to 0.35 s each where nothing else runs; the first ones took 5 to 10 s.
HOSTILE = {
    "many branches": numbered("".join(f"(a{index}|b)" for index in range(30)), 1000),
    "many groups": numbered("(?:a{1,2}b|c)" * 250, 100),
    "empty groups": numbered("()" * 2000, 100),
    "alternatives": numbered("(?:a|b)" * 550, 100),
    "nested sets": numbered("[[&&]" * 800, 100),
    "lookbehinds": numbered("(?<=model)" * 400, 100),
    "names that nearly are some": numbered("model.layers.1.self_attn.q_proj", 4096),
    "dots": numbered("." * 30, 4096),
    "stars": numbered(".*" * 2000, 100),
    "boundaries": numbered(r"\b" * 1000, 100),
    "tempered dots": numbered(r"(?:(?!layers\.1\.).)*", 4000),
    "what breaks out": numbered("x)|(y", 4000),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_expressions_cost_little(name: str) -> None:
    patterns = HOSTILE[name]
    before = time.thread_time()
    with pytest.raises(
        InvalidAdapterError, match=r'_pattern ".*" takes too long to match: .* may take 100000'
    ):
        parsed(rank_pattern=patterns("a"), alpha_pattern=patterns("b"))
    assert time.thread_time() - before < 1


def test_names_that_match_nothing_cost_nothing() -> None:
    patterns = {f"x.{index}.y.{index}.z": 8 for index in range(4096)}
    before = time.thread_time()
    parsed(rank_pattern=patterns, alpha_pattern=patterns)
    assert time.thread_time() - before < 1  # 0.08 s; once it took 5


def test_another_thread_runs_meanwhile() -> None:
    """The event loop does, on the shard: it must not wait for the interpreter as long as this lasts."""
    done = threading.Event()

    def parse() -> None:
        with pytest.raises(InvalidAdapterError):
            parsed(rank_pattern=HOSTILE["dots"]("a"), alpha_pattern=HOSTILE["dots"]("b"))
        done.set()

    thread = threading.Thread(target=parse)
    thread.start()
    turns = 0
    while not done.is_set():
        time.sleep(0.0005)
        turns += 1
    thread.join()
    assert turns > 20  # of some 200
