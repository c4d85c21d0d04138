"""Regular expressions from strangers, matched without backtracking and at a price that is counted.

PEFT configs name modules by regular expression, and Python's `re` can be made to run for years on a name of
sixty characters; it also holds the interpreter while it does. Here an expression is walked over *sets* of
places in all names together (`ModuleNames`), so that no choice is ever undone and hundreds of modules cost
what one does. The answer to "does it match" is the one `re` gives; what cannot be answered that way (back
references, atomic groups, inline flags) is refused.
"""

import re
import time
from collections.abc import Iterable
from functools import reduce
from operator import or_
from re import _compiler, _parser  # type: ignore[attr-defined]
from re import _constants as c  # type: ignore[attr-defined]
from typing import Any

from lorikeet_server.adapters.module_names import ModuleNames
from lorikeet_server.adapters.strict_json import shown
from lorikeet_server.errors import InvalidAdapterError

_MAX_LENGTH = 4096
# Of all expressions of one adapter. A step is one node of an expression at all its places: 1 to 2 us with the
# 560 names of an 80-layer model, so 0.3 s. An expression for each of these modules takes 17,000 to 70,000.
_MAX_STEPS = 100_000
# Python's parser takes 1 to 2 us for a character, and 10 or more for what opens a group, set or alternative.
_CHARACTER, _OPENING = 1, 10
_SET_ITEM = 4
# Steps between two offers of the interpreter to others: all of this holds it, on a thread of low priority.
# With 16 such adapters at once and both processors busy, the event loop waits 40 ms for it (99th percentile);
# 200 ms if it is offered after 500 steps, 600 ms without.
_PIECE = 100

# What needs no parser: characters, `\.`, `^` and `$`. Nearly all keys are such, and 4 times cheaper then.
_PLAIN = re.compile(r"(?:[A-Za-z0-9_.^$\-]|\\\.)*\Z")
_TOKEN = re.compile(r"\\?.")
_META = {".": (c.ANY, None), "^": (c.AT, c.AT_BEGINNING), "$": (c.AT, c.AT_END)}
_ONE_CHARACTER = (c.LITERAL, c.NOT_LITERAL, c.ANY, c.IN)


class _NotAnExpressionError(Exception):
    """What Python's parser says."""


class Matcher:
    """The expressions of one adapter over the names of one model. Answers are the ends of names that match.

    `field` names the expression in messages. Raises `InvalidAdapterError` for one that is none, that is
    refused, or that costs more than all expressions of an adapter may together.
    """

    def __init__(self, names: ModuleNames) -> None:
        self.names = names
        self._left = _MAX_STEPS
        self._field, self._source = "", ""  # of the current expression, as are
        self._masks: dict[int, int] = {}  # of sets and lookarounds, by the identity of their node
        self._endings: dict[str, int] = {}  # rank_pattern and alpha_pattern mostly have the same keys

    def fullmatch(self, source: str, field: str) -> int:
        """As `re.fullmatch(source, name)`."""
        self._field, self._source = field, source
        try:
            nodes = self._parse(source)
        except _NotAnExpressionError as error:
            raise self._error(f"is not a regular expression: {shown(str(error))}") from None
        return self._match(nodes, self.names.begin) & self.names.end

    def ending(self, key: str, field: str) -> int:
        """As `re.match(rf"(.*\\.)?({key})$", name)`, which is PEFT's reading of a `rank_pattern` key."""
        if key not in self._endings:
            self._field, self._source = field, key
            self._endings[key] = self._ending(key)
        return self._endings[key]

    def _ending(self, key: str) -> int:
        names = self.names
        try:
            return self._match(self._parse(key), names.begin | names.after_dot) & names.end
        except _NotAnExpressionError as error:
            reason = str(error)
        try:  # `a)|(b` is no expression, and two halves of PEFT's
            nodes = self._parse(rf"(.*\.)?({key})$")
        except _NotAnExpressionError:
            raise self._error(f"is not a regular expression: {shown(reason)}") from None
        return _run(self._match(nodes, names.begin), names.any) & names.end

    def _parse(self, source: str) -> Iterable[Any]:
        if len(source) > _MAX_LENGTH:
            raise self._error(f"has {len(source)} characters; at most {_MAX_LENGTH} are read")
        if _PLAIN.match(source):
            return (_META.get(token) or (c.LITERAL, ord(token[-1])) for token in _TOKEN.findall(source))
        self._spend(_CHARACTER * len(source) + _OPENING * sum(map(source.count, "([|")))
        try:
            tree = _parser.parse(source)
            if "(?<" in source:  # whose width is checked no earlier
                self._spend(_CHARACTER * len(source))
                _compiler.compile(tree)
        except (re.error, RecursionError, OverflowError, ValueError) as error:
            raise _NotAnExpressionError(str(error)) from None
        if tree.state.flags != re.UNICODE:
            raise self._refusal("inline flags")
        return tree.data  # type: ignore[no-any-return]

    def _match(self, nodes: Iterable[Any], starts: int) -> int:
        self._masks.clear()
        try:
            return self._walk(nodes, starts)
        except RecursionError:
            raise self._error("is nested too deeply") from None

    def _walk(self, nodes: Any, at: int, forward: bool = True) -> int:
        """Where matches of `nodes` can end that start at any of `at`; if not forward, where those can start
        that end there."""
        for op, arg in nodes if forward else reversed(nodes):
            if not at:
                break
            self._spend(1)
            if op in _ONE_CHARACTER:
                mask = self._mask(op, arg)
                at = (at & mask) << 1 if forward else at >> 1 & mask
            elif op is c.SUBPATTERN:
                _, added, removed, inner = arg
                if added or removed:
                    raise self._refusal("inline flags")
                at = self._walk(inner.data, at, forward)
            elif op is c.BRANCH:
                at = reduce(or_, (self._walk(branch.data, at, forward) for branch in arg[1]))
            elif op in (c.MAX_REPEAT, c.MIN_REPEAT):
                low, high, inner = arg
                at = self._repeat(low, high, inner.data, at, forward)
            else:
                at &= self._mask(op, arg)
        return at

    def _repeat(self, low: int, high: Any, nodes: Any, at: int, forward: bool) -> int:
        for _ in range(low):
            again = self._walk(nodes, at, forward)
            if again == at:  # more repeats change nothing any more
                break
            at = again
        if forward and high is c.MAXREPEAT and len(nodes) == 1 and nodes[0][0] in _ONE_CHARACTER:
            self._spend(2)
            return _run(at, self._mask(*nodes[0]))
        found, count = at, low
        while at and count < high:
            at = self._walk(nodes, at, forward) & ~found
            found |= at
            count += 1
        return found

    def _mask(self, op: Any, arg: Any) -> int:
        """Where a node of one character finds it, or where one without width holds."""
        names = self.names
        if op is c.LITERAL:
            return names.chars.get(arg, 0)
        if op is c.NOT_LITERAL:
            return names.any ^ names.chars.get(arg, 0)
        if op is c.ANY:
            return names.any
        if op is c.AT and arg in names.anchors:
            return names.anchors[arg]
        if op is c.FAILURE:
            return 0
        if op in (c.IN, c.ASSERT, c.ASSERT_NOT):
            if id(arg) not in self._masks:
                self._masks[id(arg)] = self._in_set(arg) if op is c.IN else self._looking(op, *arg)
            return self._masks[id(arg)]
        raise self._refusal(str(arg if op is c.AT else op).lower().replace("_", " "))

    def _in_set(self, items: Any) -> int:
        self._spend(_SET_ITEM * len(items))
        return self.names.in_set(items)

    def _looking(self, op: Any, direction: int, nodes: Any) -> int:
        holds = self._walk(nodes.data, self.names.anywhere, forward=direction < 0)
        return holds if op is c.ASSERT else self.names.anywhere ^ holds

    def _spend(self, steps: int) -> None:
        before, self._left = self._left, self._left - steps
        if self._left < 0:
            raise self._error(
                f"takes too long to match: all expressions of adapter_config.json may take {_MAX_STEPS} steps"
            )
        if before // _PIECE != self._left // _PIECE:
            time.sleep(0)

    def _refusal(self, what: str) -> InvalidAdapterError:
        return self._error(f"uses {what}, which this server refuses")

    def _error(self, what: str) -> InvalidAdapterError:
        return InvalidAdapterError(f"{self._field} {shown(self._source)} {what}")


def _run(at: int, mask: int) -> int:
    """Every place that is reached from `at` over characters of `mask` alone: a carry runs along them."""
    return ((at & mask) + mask ^ mask) | at
