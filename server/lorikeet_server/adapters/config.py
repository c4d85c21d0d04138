"""`adapter_config.json`, reduced to what decides the numbers: which modules, which ranks, which scales.

The rules are PEFT's own (`peft.tuners.lora`), so an adapter means here what it means there. What PEFT would do and we
do not is refused by `options`. This file knows nothing of tensors or of the model served.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from lorikeet_server.adapters.options import check_options
from lorikeet_server.adapters.pattern import Budget, Pattern
from lorikeet_server.adapters.strict_json import parse_object, shown
from lorikeet_server.errors import InvalidAdapterError

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
_MAX_PATTERNS = 4096
_LAYER = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")
_OUTPUT_HEAD = "lm_head"

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Rank of one module's A and B, and the factor on their product."""

    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What one config says. `targets` and `scaling` take module names as PEFT sees them: model.layers.0.mlp.up_proj."""

    base_model: str
    targets: Callable[[str], bool]
    scaling: Callable[[str], Scaling]


def parse_config(data: bytes, max_rank: int) -> AdapterConfig:
    """Read and check one config. Raises `InvalidAdapterError` naming the field."""
    raw = parse_object(data, CONFIG_FILE, MAX_CONFIG_BYTES)
    peft_type = raw.get("peft_type")
    if peft_type != "LORA":
        raise InvalidAdapterError(f'{CONFIG_FILE} sets peft_type to {shown(peft_type)}; only "LORA" is supported')
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        given = shown(raw["task_type"])
        raise InvalidAdapterError(f'{CONFIG_FILE} sets task_type to {given}; only "CAUSAL_LM" is supported')
    check_options(raw)
    budget = Budget()
    return AdapterConfig(
        base_model=_string(raw, "base_model_name_or_path"),
        targets=_targets(raw, budget),
        scaling=_scaling(raw, max_rank, budget),
    )


def _string(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidAdapterError(f"{CONFIG_FILE} sets {key} to {shown(value)}; a string is expected")
    return value


# --- which modules ---


def _targets(raw: dict[str, Any], budget: Budget) -> Callable[[str], bool]:
    named = _named(raw.get("target_modules"), "target_modules", budget)
    if named is None:
        raise InvalidAdapterError(f"{CONFIG_FILE} has no target_modules; name the modules that the adapter changes")
    excluded = _named(raw.get("exclude_modules"), "exclude_modules", budget)
    in_layer = _layers(raw)
    names = raw["target_modules"]

    def targets(module: str) -> bool:
        if excluded is not None and excluded(module):
            return False
        if isinstance(names, list) and module in names:
            return True  # a full name holds whatever layers_to_transform says
        return named(module) and in_layer(module)

    return targets


def _named(value: Any, field: str, budget: Budget) -> Callable[[str], bool] | None:
    """A test for names, from a list of names or name endings, or from one regular expression."""
    if value is None or value == [] or value == "":
        return None
    if isinstance(value, str):
        if field == "target_modules" and value.lower() == "all-linear":
            return lambda module: module.rpartition(".")[2] != _OUTPUT_HEAD
        return Pattern(value, field, budget).fullmatch
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise InvalidAdapterError(f"{CONFIG_FILE} sets {field} to {shown(value)}; a list of names is expected")
    names = frozenset(value)

    def named(module: str) -> bool:
        return module in names or any(ending in names for ending in _endings(module))

    return named


def _endings(module: str) -> Iterable[str]:
    """self_attn.q_proj, then q_proj, of ...self_attn.q_proj."""
    parts = module.split(".")
    return (".".join(parts[i:]) for i in range(1, len(parts)))


def _layers(raw: dict[str, Any]) -> Callable[[str], bool]:
    wanted, patterns = raw.get("layers_to_transform"), raw.get("layers_pattern")
    if isinstance(raw.get("target_modules"), str) and (wanted is not None or patterns is not None):
        raise InvalidAdapterError(
            f"{CONFIG_FILE} sets layers_to_transform or layers_pattern, which needs target_modules as a list"
        )
    if patterns and wanted is None:
        raise InvalidAdapterError(f"{CONFIG_FILE} sets layers_pattern without layers_to_transform")
    if wanted is None or wanted == []:
        return lambda module: True
    indices = frozenset([wanted] if isinstance(wanted, int) else wanted if isinstance(wanted, list) else [None])
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in indices):
        raise InvalidAdapterError(f"{CONFIG_FILE} sets layers_to_transform to {shown(wanted)}; integers are expected")
    searches = [_LAYER] if not patterns else [_layer_search(p) for p in _strings(patterns, "layers_pattern")]

    def in_layer(module: str) -> bool:
        found = next(filter(None, (search.match(module) for search in searches)), None)
        return found is not None and int(found["index"]) in indices

    return in_layer


def _strings(value: Any, field: str) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values) or len(values) > 64:
        raise InvalidAdapterError(f"{CONFIG_FILE} sets {field} to {shown(value)}; names are expected")
    return values


def _layer_search(name: str) -> re.Pattern[str]:
    if not re.fullmatch(r"[A-Za-z0-9_.]{1,128}", name):
        raise InvalidAdapterError(f"{CONFIG_FILE} sets layers_pattern to {shown(name)}; a module name is expected")
    return re.compile(rf"(?:^|.*?\.){name}\.(?P<index>\d+)\.")


# --- which ranks and scales ---


def _scaling(raw: dict[str, Any], max_rank: int, budget: Budget) -> Callable[[str], Scaling]:
    ranks = _per_module(raw, "rank_pattern", "r", budget, lambda v, f: _rank(v, f, max_rank))
    alphas = _per_module(raw, "alpha_pattern", "lora_alpha", budget, _alpha)
    stabilised = raw.get("use_rslora", False)
    if stabilised not in (None, False, True):
        raise InvalidAdapterError(f"{CONFIG_FILE} sets use_rslora to {shown(stabilised)}; true or false is expected")

    def scaling(module: str) -> Scaling:
        rank = ranks(module)
        return Scaling(rank, alphas(module) / (math.sqrt(rank) if stabilised else rank))

    return scaling


def _per_module(
    raw: dict[str, Any], patterns_key: str, default_key: str, budget: Budget, check: Callable[[Any, str], N]
) -> Callable[[str], N]:
    """The value for a module: of the first pattern that matches the end of its name, else the default."""
    default = check(raw.get(default_key, 8), default_key)
    patterns = raw.get(patterns_key)
    if patterns is None or patterns == {}:
        return lambda module: default
    if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
        raise InvalidAdapterError(f"{CONFIG_FILE}: {patterns_key} must be an object of at most {_MAX_PATTERNS} entries")
    compiled = [
        (Pattern.ending(key, patterns_key, budget), check(value, f"{patterns_key}[{shown(key)}]"))
        for key, value in patterns.items()
    ]
    return lambda module: next((value for pattern, value in compiled if pattern.match(module)), default)


def _rank(value: Any, field: str, max_rank: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= max_rank:
        raise InvalidAdapterError(
            f"{CONFIG_FILE} sets {field} to {shown(value)}; a whole number from 1 to {max_rank} is expected"
        )
    return value


def _alpha(value: Any, field: str) -> float:
    # 1e9 is far beyond any real alpha, and keeps the scale finite in float32.
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= 1e9:
        raise InvalidAdapterError(f"{CONFIG_FILE} sets {field} to {shown(value)}; a number up to 1e9 is expected")
    return float(value)
