"""The header `external-filter`: a label selector, in Kubernetes' grammar and with its meaning.

Owns the grammar and the check of one pod's labels. It knows no header and no pod. Left out are
the operators `>` and `<`, which Kubernetes' documentation does not offer either.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from aibrix_extproc.errors import BadFilter, printable

MAX_SELECTOR_BYTES = 1024
MAX_REQUIREMENTS = 32

_CACHED_SELECTORS = 256
_MAX_NAME_LENGTH = 63
_MAX_PREFIX_LENGTH = 253
_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_SYMBOL = re.compile(r"[ \t\r\n]*(==|!=|[=!(),]|[^=!(), \t\r\n]+)")


class Operator(StrEnum):
    """What a requirement asks of one label; `=`, `==` and `!=` are sets of one value."""

    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    MISSING = "!"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """As Kubernetes: a label that is not there satisfies `!=`, `notin` and `!`."""
        value = labels.get(self.key)
        match self.operator:
            case Operator.IN:
                return value is not None and value in self.values
            case Operator.NOT_IN:
                return value is None or value not in self.values
            case Operator.EXISTS:
                return value is not None
            case Operator.MISSING:
                return value is None


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements that must all hold; without any, everything matches."""

    requirements: tuple[Requirement, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)


def parse_selector(text: str) -> Selector:
    """Read `a=b, c!=d, e in (f,g), h notin (i), j, !k`.

    Raises BadFilter with the reason, also past MAX_SELECTOR_BYTES or MAX_REQUIREMENTS.
    """
    if len(text) > MAX_SELECTOR_BYTES or len(text.encode()) > MAX_SELECTOR_BYTES:
        raise BadFilter(f"it is longer than {MAX_SELECTOR_BYTES} bytes")
    return _parse(text)


@lru_cache(_CACHED_SELECTORS)
def _parse(text: str) -> Selector:
    return _Parser(text).selector()


class _Parser:
    """Recursive descent over the symbols of one selector; an empty one is the end."""

    def __init__(self, text: str) -> None:
        self._symbols: list[str] = [*_SYMBOL.findall(text), ""]
        self._next = 0

    def selector(self) -> Selector:
        requirements: list[Requirement] = []
        if not self._peek():
            return Selector(())
        while True:
            requirements.append(self._requirement())
            if len(requirements) > MAX_REQUIREMENTS:
                raise BadFilter(f"it has more than {MAX_REQUIREMENTS} requirements")
            if not (symbol := self._take()):
                return Selector(tuple(requirements))
            if symbol != ",":
                raise _unexpected(
                    symbol, f"a comma after the condition on '{requirements[-1].key}'"
                )

    def _requirement(self) -> Requirement:
        absent = self._peek() == "!"
        if absent:
            self._take()
        key = _checked_key(self._word("a label's name"))
        if absent:
            return Requirement(key, Operator.MISSING)
        if self._peek() in ("", ","):
            return Requirement(key, Operator.EXISTS)
        match symbol := self._take():
            case "=" | "==":
                return Requirement(key, Operator.IN, frozenset((self._value(),)))
            case "!=":
                return Requirement(key, Operator.NOT_IN, frozenset((self._value(),)))
            case "in" | "notin":
                return Requirement(key, Operator(symbol), self._values(key))
            case _:
                raise _unexpected(symbol, f"=, ==, !=, in or notin after '{key}'")

    def _values(self, key: str) -> frozenset[str]:
        if (symbol := self._take()) != "(":
            raise _unexpected(symbol, "an opening parenthesis")
        if self._peek() == ")":
            raise BadFilter(f"the set of values for '{key}' is empty")
        values = set()
        while True:
            values.add(self._value())
            if (symbol := self._take()) == ")":
                return frozenset(values)
            if symbol != ",":
                raise _unexpected(symbol, "a comma or a closing parenthesis")

    def _value(self) -> str:
        """One value; left out before a comma, a closing parenthesis or the end, it is empty."""
        return "" if self._peek() in ("", ",", ")") else _checked_value(self._word("a value"))

    def _word(self, what: str) -> str:
        symbol = self._take()
        if symbol in ("", "=", "==", "!=", "!", "(", ")", ","):
            raise _unexpected(symbol, what)
        return symbol

    def _peek(self) -> str:
        return self._symbols[self._next]

    def _take(self) -> str:
        symbol = self._symbols[self._next]
        self._next += 1
        return symbol


def _unexpected(symbol: str, wanted: str) -> BadFilter:
    found = f"'{printable(symbol)}' stands" if symbol else "it ends"
    return BadFilter(f"{found} where {wanted} should be")


def _checked_key(key: str) -> str:
    prefix, slash, name = key.rpartition("/")
    if len(name) > _MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        raise BadFilter(f"'{printable(key)}' is no label name ({_NAME_RULE})")
    if slash and (len(prefix) > _MAX_PREFIX_LENGTH or not _PREFIX.fullmatch(prefix)):
        raise BadFilter(f"'{printable(key)}' has a prefix that is no lower-case DNS name")
    return key


def _checked_value(value: str) -> str:
    if len(value) > _MAX_NAME_LENGTH or not _NAME.fullmatch(value):
        raise BadFilter(f"'{printable(value)}' is no label value ({_NAME_RULE})")
    return value


_NAME_RULE = (
    f"at most {_MAX_NAME_LENGTH} letters, digits, '-', '_' or '.', "
    "the first and the last a letter or digit"
)
