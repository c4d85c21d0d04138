"""`adapter_config.json`, reduced to what decides the numbers: which modules, which ranks, which scales.

The rules are PEFT's own (`peft.tuners.lora`), so an adapter means here what it means there. What PEFT would
do and we do not is refused by `options`. This file knows nothing of tensors or of the model served.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lorikeet_server.adapters.module_names import ModuleNames
from lorikeet_server.adapters.options import check_options
from lorikeet_server.adapters.pattern import Matcher
from lorikeet_server.adapters.selection import Selection, select_modules
from lorikeet_server.adapters.strict_json import parse_object, shown, wrong_value

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
_MAX_PATTERNS = 4096
_MAX_NAME = 1024  # comparing names takes the square of their length
# Far beyond any real alpha, and small enough to keep every scale finite in float32.
_MAX_ALPHA = 1e9
_DEFAULT = 8  # of r and of lora_alpha, in every version of PEFT

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Rank of one module's A and B, and the factor on their product."""

    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What one config says. Modules are named as PEFT sees them: model.layers.0.mlp.up_proj."""

    base_model: str
    targets: Selection
    scaling: Callable[[str], Scaling]


def parse_config(data: bytes, max_rank: int, modules: ModuleNames) -> AdapterConfig:
    """Read and check one config, for these modules. Raises `InvalidAdapterError` naming the field."""
    raw = parse_object(data, CONFIG_FILE, MAX_CONFIG_BYTES)
    if raw.get("peft_type") != "LORA":
        raise wrong_value("peft_type", raw.get("peft_type"), '"LORA"')
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise wrong_value("task_type", raw["task_type"], '"CAUSAL_LM" or null')
    check_options(raw)
    base_model = raw.get("base_model_name_or_path")
    if not isinstance(base_model, str | None) or len(base_model or "") > _MAX_NAME:
        expected = f"a string of at most {_MAX_NAME} characters"
        raise wrong_value("base_model_name_or_path", base_model, expected)
    matcher = Matcher(modules)
    return AdapterConfig(base_model or "", select_modules(raw, matcher), _scaling(raw, max_rank, matcher))


def _scaling(raw: dict[str, Any], max_rank: int, matcher: Matcher) -> Callable[[str], Scaling]:
    ranks = _per_module(raw, "rank_pattern", "r", matcher, lambda value, field: _rank(value, field, max_rank))
    alphas = _per_module(raw, "alpha_pattern", "lora_alpha", matcher, _alpha)
    stabilised = raw.get("use_rslora")
    if not isinstance(stabilised, bool | None):
        raise wrong_value("use_rslora", stabilised, "true or false")

    def scaling(module: str) -> Scaling:
        rank = ranks(module)
        return Scaling(rank, alphas(module) / (math.sqrt(rank) if stabilised else rank))

    return scaling


def _per_module(
    raw: dict[str, Any], patterns_key: str, default_key: str, matcher: Matcher, check: Callable[[Any, str], N]
) -> Callable[[str], N]:
    """The value for a module: of the first pattern that matches the end of its name, else the default."""
    default = check(raw.get(default_key, _DEFAULT), default_key)
    patterns = {} if raw.get(patterns_key) is None else raw[patterns_key]
    if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
        raise wrong_value(patterns_key, patterns, f"an object of at most {_MAX_PATTERNS} entries")
    values: dict[str, N] = {}
    unmatched = matcher.names.end
    for key, value in patterns.items():
        checked = check(value, f"{patterns_key}[{shown(key)}]")
        first = matcher.ending(key, patterns_key) & unmatched
        unmatched ^= first
        values.update(dict.fromkeys(matcher.names.ending_at(first), checked))
    return lambda module: values.get(module, default)


def _rank(value: Any, field: str, max_rank: int) -> int:
    if type(value) is not int or not 1 <= value <= max_rank:
        raise wrong_value(field, value, f"a whole number from 1 to {max_rank} (--max-lora-rank)")
    return value


def _alpha(value: Any, field: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= _MAX_ALPHA:
        raise wrong_value(field, value, f"a number up to {_MAX_ALPHA:g}")
    return float(value)
