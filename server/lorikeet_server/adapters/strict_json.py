"""JSON from strangers: bounded, UTF-8, and with one meaning only.

`json.loads` lets the last of two equal keys win and reads NaN; both would let a file say one thing to a
checker and another to its user. An escape can stand for half of a surrogate pair, which is no character: no
message that quotes it could be sent.
"""

import json
import math
from typing import Any

from lorikeet_server.errors import InvalidAdapterError

_BOM = b"\xef\xbb\xbf"


def parse_object(data: bytes | bytearray, what: str, max_bytes: int) -> dict[str, Any]:
    """Parse one JSON object. Raises `InvalidAdapterError`, whose message starts with `what`."""
    if len(data) > max_bytes:
        raise InvalidAdapterError(f"{what} has {len(data)} bytes; at most {max_bytes} are read")
    if data.startswith(_BOM):
        raise InvalidAdapterError(f"{what} starts with a byte order mark; save it as UTF-8 without BOM")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidAdapterError(f"{what} is not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except _JsonError as error:
        raise InvalidAdapterError(f"{what} {error}") from None
    except json.JSONDecodeError as error:
        raise InvalidAdapterError(f"{what} is not JSON: {error.msg} at line {error.lineno}") from None
    except ValueError:  # Python's own bound on the digits of an integer
        raise InvalidAdapterError(f"{what} holds a number that is too large") from None
    except RecursionError:
        raise InvalidAdapterError(f"{what} is nested too deeply") from None
    if not isinstance(value, dict):
        raise InvalidAdapterError(f"{what} holds a JSON {type(value).__name__} where an object is expected")
    if b"\\ud" in data.lower():  # an escape that may be half of a pair
        _check_pairs(value, what)
    return value


def _check_pairs(value: dict[str, Any], what: str) -> None:
    for key, item in value.items():
        try:
            json.dumps([key, item], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InvalidAdapterError(f"{what} holds half of a surrogate pair, in {shown(key)}") from None
        except RecursionError:
            raise InvalidAdapterError(f"{what} is nested too deeply") from None


class _JsonError(Exception):
    """Raised inside the parser's hooks; `parse_object` adds what was being parsed."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _JsonError(f"has the key {shown(key)} twice")
            seen.add(key)
    return result


def _no_constant(name: str) -> Any:
    raise _JsonError(f"holds {name}, which is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _JsonError(f"holds the number {digits[:32]}, which is too large")
    return value


def shown(value: object) -> str:
    """A value from a stranger as it may appear in a message: ASCII, quoted, short."""
    text = ascii(value) if not isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:110]}...{text[-1]}"


def wrong_value(field: str, value: object, expected: str) -> InvalidAdapterError:
    """The error for a field of adapter_config.json that holds something unusable."""
    return InvalidAdapterError(f"adapter_config.json sets {field} to {shown(value)}; expected is {expected}")
