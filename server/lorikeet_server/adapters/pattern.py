"""Regular expressions from strangers, matched without backtracking.

PEFT configs name modules by regular expression, and Python's `re` can be made to run for years on a name of
sixty characters. Here an expression is walked over *sets* of positions instead, so that no choice is ever
undone, and every walk is counted against a budget. The answer to "does it match" is the one `re` gives; what
cannot be answered that way (back references, atomic groups, inline flags) is refused.
"""

import re
from collections.abc import Iterable
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from lorikeet_server.adapters.strict_json import shown
from lorikeet_server.errors import InvalidAdapterError

_MAX_LENGTH = 4096
_ENDING = (r"(.*\.)?(", ")$")
_PLAIN = re.compile(r"\^?(?:[A-Za-z0-9_.\-]|\\\.)*\$?\Z")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


class Budget:
    """Steps that all expressions of one adapter may take together. One step is one position at one node."""

    def __init__(self, steps: int = 1_000_000) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        """Raises `InvalidAdapterError` when nothing is left."""
        self.left -= steps
        if self.left < 0:
            raise InvalidAdapterError("the regular expressions of adapter_config.json take too long to match")


class Pattern:
    """One expression, matched against module names (ASCII, short). `field` names it in messages."""

    def __init__(self, source: str, field: str, budget: Budget) -> None:
        self._source, self._field, self._budget = source, field, budget
        if len(source) > _MAX_LENGTH:
            raise InvalidAdapterError(
                f"{field} is an expression of {len(source)} characters; at most {_MAX_LENGTH}"
            )
        try:
            compiled = re.compile(source)
            tree = _parser.parse(source)
        except (re.error, RecursionError, OverflowError, ValueError) as error:
            raise InvalidAdapterError(
                f"{field} {shown(source)} is not a regular expression: {error}"
            ) from None
        if compiled.flags != re.UNICODE:
            self._refuse("inline flags")
        # A name, or the end of one: here `re` is linear, and much faster than walking the tree.
        name = source.removeprefix(_ENDING[0]).removesuffix(_ENDING[1])
        self._plain = compiled if _PLAIN.match(name) else None
        self._tree = list(tree)

    @classmethod
    def ending(cls, key: str, field: str, budget: Budget) -> "Pattern":
        """PEFT's reading of a `rank_pattern` key: to be tried with `match`."""
        return cls(_ENDING[0] + key + _ENDING[1], field, budget)

    def fullmatch(self, text: str) -> bool:
        """As `re.fullmatch(source, text)`, answered with a bool."""
        if self._plain is not None:
            return self._plain.fullmatch(text) is not None
        return len(text) in self._walk(text)

    def match(self, text: str) -> bool:
        """As `re.match(source, text)`, answered with a bool."""
        if self._plain is not None:
            return self._plain.match(text) is not None
        return bool(self._walk(text))

    def _walk(self, text: str) -> set[int]:
        try:
            return self._ends(self._tree, text, {0})
        except RecursionError:
            raise InvalidAdapterError(f"{self._field} {shown(self._source)} is nested too deeply") from None

    def _refuse(self, what: str) -> None:
        raise InvalidAdapterError(
            f"{self._field} {shown(self._source)} uses {what}, which this server refuses"
        )

    def _ends(self, nodes: Iterable[Any], text: str, starts: set[int]) -> set[int]:
        """Where a match of `nodes` can end, if it starts at any of `starts`."""
        for op, arg in nodes:
            if not starts:
                return starts
            self._budget.spend(len(starts))
            starts = self._step(op, arg, text, starts)
        return starts

    def _step(self, op: Any, arg: Any, text: str, starts: set[int]) -> set[int]:
        c = _constants
        if op in (c.LITERAL, c.NOT_LITERAL, c.ANY, c.IN):
            return {i + 1 for i in starts if i < len(text) and _accepts(op, arg, text[i])}
        if op is c.BRANCH:
            return set().union(*(self._ends(branch, text, starts) for branch in arg[1]))
        if op is c.SUBPATTERN:
            _, added, removed, nodes = arg
            if added or removed:
                self._refuse("inline flags")
            return self._ends(nodes, text, starts)
        if op in (c.MAX_REPEAT, c.MIN_REPEAT):
            low, high, nodes = arg
            return self._repeat(low, high, nodes, text, starts)
        if op is c.AT:
            return {i for i in starts if self._at(arg, text, i)}
        if op in (c.ASSERT, c.ASSERT_NOT):
            direction, nodes = arg
            wanted = op is c.ASSERT
            return {i for i in starts if self._looks(nodes, direction, text, i) is wanted}
        if op is c.FAILURE:
            return set()
        self._refuse(str(op).lower().replace("_", " "))
        return set()

    def _repeat(self, low: int, high: int, nodes: Any, text: str, starts: set[int]) -> set[int]:
        reached = starts
        for _ in range(low):
            again = self._ends(nodes, text, reached)
            self._budget.spend(1)
            if again == reached:  # more repeats change nothing any more
                break
            reached = again
        found, frontier, count = set(reached), reached, low
        while frontier and count < high:
            frontier = self._ends(nodes, text, frontier) - found
            found |= frontier
            count += 1
        return found

    def _looks(self, nodes: Any, direction: int, text: str, at: int) -> bool:
        if direction > 0:
            return bool(self._ends(nodes, text, {at}))
        width, _ = nodes.getwidth()  # `re.compile` has made sure that it is fixed
        return at >= width and at in self._ends(nodes, text, {at - width})

    def _at(self, kind: Any, text: str, i: int) -> bool:
        c = _constants
        if kind in (c.AT_BEGINNING, c.AT_BEGINNING_STRING):
            return i == 0
        if kind in (c.AT_END, c.AT_END_STRING):  # names hold no newline, so `$` and `\Z` agree
            return i == len(text)
        if kind in (c.AT_BOUNDARY, c.AT_NON_BOUNDARY):
            before, after = i > 0 and text[i - 1] in _WORD, i < len(text) and text[i] in _WORD
            # `re` finds no boundary of either kind in an empty string; module names are never empty.
            return (before != after) is (kind is c.AT_BOUNDARY)
        self._refuse(str(kind).lower().replace("_", " "))
        return False


def _accepts(op: Any, arg: Any, char: str) -> bool:
    c = _constants
    if op is c.LITERAL:
        return bool(ord(char) == arg)
    if op is c.NOT_LITERAL:
        return bool(ord(char) != arg)
    if op is c.ANY:
        return True
    negated, hit = False, False
    for kind, value in arg:
        if kind is c.NEGATE:
            negated = True
        elif kind is c.LITERAL:
            hit = hit or ord(char) == value
        elif kind is c.RANGE:
            hit = hit or value[0] <= ord(char) <= value[1]
        else:
            hit = hit or _in_category(value, char)
    return hit is not negated


def _in_category(category: Any, char: str) -> bool:
    c = _constants
    inside = {
        c.CATEGORY_DIGIT: char.isdigit(),
        c.CATEGORY_SPACE: char.isspace(),
        c.CATEGORY_WORD: char in _WORD,
        c.CATEGORY_NOT_DIGIT: not char.isdigit(),
        c.CATEGORY_NOT_SPACE: not char.isspace(),
        c.CATEGORY_NOT_WORD: char not in _WORD,
    }
    return bool(inside[category])
