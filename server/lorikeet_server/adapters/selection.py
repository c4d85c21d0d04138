"""Which modules a config means: PEFT's reading of target_modules, exclude_modules and layers_to_transform."""

import re
from collections.abc import Callable
from typing import Any

from lorikeet_server.adapters.pattern import Matcher
from lorikeet_server.adapters.strict_json import wrong_value
from lorikeet_server.errors import InvalidAdapterError

Selection = Callable[[str], bool]

# PEFT leaves out the output head, and an embedding is not linear.
_NOT_ALL_LINEAR = ("lm_head", "embed_tokens")
_MAX_LAYER_PATTERNS = 64
_LAYER = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")
_LAYER_PATTERN = re.compile(r"[A-Za-z0-9_.]{1,128}")


def select_modules(raw: dict[str, Any], matcher: Matcher) -> Selection:
    """A test for module names as PEFT sees them. Raises `InvalidAdapterError` naming the field."""
    names = raw.get("target_modules")
    named = _named(names, "target_modules", matcher)
    if named is None:
        raise InvalidAdapterError(
            "adapter_config.json has no target_modules; name the modules that the adapter changes"
        )
    excluded = _named(raw.get("exclude_modules"), "exclude_modules", matcher)
    in_layer = _layers(raw)
    full_names = frozenset(names) if isinstance(names, list) else frozenset()

    def selected(module: str) -> bool:
        if excluded is not None and excluded(module):
            return False
        # A full name holds whatever layers_to_transform says.
        return module in full_names or (named(module) and in_layer(module))

    return selected


def _named(value: Any, field: str, matcher: Matcher) -> Selection | None:
    """From a list of names or endings of names, or from one regular expression. None if it says nothing."""
    if value is None or value == [] or value == "":
        return None
    if isinstance(value, str):
        if field == "target_modules" and value.lower() == "all-linear":
            return lambda module: module.rpartition(".")[2] not in _NOT_ALL_LINEAR
        return frozenset(matcher.names.ending_at(matcher.fullmatch(value, field))).__contains__
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise wrong_value(field, value, "a list of names")
    names = frozenset(value)

    def named(module: str) -> bool:
        """Whether c, b.c or a.b.c is among the names."""
        at = len(module)
        while at >= 0:
            at = module.rfind(".", 0, at)
            if module[at + 1 :] in names:
                return True
        return False

    return named


def _layers(raw: dict[str, Any]) -> Selection:
    wanted, patterns = raw.get("layers_to_transform"), raw.get("layers_pattern")
    for field in ("layers_to_transform", "layers_pattern"):
        if isinstance(raw["target_modules"], str) and raw.get(field) is not None:
            raise InvalidAdapterError(
                f"adapter_config.json sets {field}, which needs a list of target_modules"
            )
    if patterns and wanted is None:
        raise InvalidAdapterError("adapter_config.json sets layers_pattern without layers_to_transform")
    if wanted is None or wanted == []:
        return lambda module: True
    listed = wanted if isinstance(wanted, list) else [wanted]
    if not all(type(index) is int for index in listed):
        raise wrong_value("layers_to_transform", wanted, "a whole number or a list of them")
    indices = frozenset(listed)
    searches = [_layer_search(pattern) for pattern in _layer_patterns(patterns)] if patterns else [_LAYER]

    def in_layer(module: str) -> bool:
        found = next(filter(None, (search.match(module) for search in searches)), None)
        return found is not None and int(found["index"]) in indices

    return in_layer


def _layer_patterns(value: Any) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    if len(values) > _MAX_LAYER_PATTERNS:
        raise wrong_value("layers_pattern", value, f"at most {_MAX_LAYER_PATTERNS} names")
    return values


def _layer_search(name: Any) -> re.Pattern[str]:
    # PEFT takes any expression here; names are what people write, and what cannot run for ever.
    if not isinstance(name, str) or _LAYER_PATTERN.fullmatch(name) is None:
        raise wrong_value("layers_pattern", name, "the name of a module list, such as layers")
    return re.compile(rf"(?:^|.*?\.){name}\.(?P<index>\d+)\.")
