"""PromQL as far as the tests of dashboards and rules need it: the metrics, labels and functions
that an expression names. Prometheus' own `promtool` judges the grammar, where it is installed."""

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"\s+|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?\b)|(?P<word>[A-Za-z_][\w:]*)"
    r"|(?P<string>\"[^\"]*\")|(?P<range>\[[^\]]*\])|(?P<mark>=~|!~|!=|==|<=|>=|[-+*/=<>(){},])"
)
FUNCTIONS = frozenset({"abs", "avg", "bottomk", "count", "histogram_quantile", "increase", "max"})
FUNCTIONS |= frozenset({"min", "quantile", "rate", "sum", "topk", "vector"})
OF_COUNTERS = frozenset({"rate", "increase"})
GROUPS = frozenset({"by", "ignoring", "on", "without"})
WORDS = GROUPS | {"and", "bool", "group_left", "or", "unless"}
PAIRS = {")": "(", "}": "{"}


class NotPromQL(ValueError):
    """Something in an expression that cannot be right."""


@dataclass(slots=True)
class Selector:
    """One metric of an expression, with its matchers: label, operator, value."""

    metric: str
    matchers: list[tuple[str, str, str]] = field(default_factory=list)
    range: str = ""
    function: str = ""
    """What it stands in at once."""


@dataclass(slots=True)
class Expression:
    """What an expression names."""

    selectors: list[Selector] = field(default_factory=list)
    grouped: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """`by` and its like, each with its labels."""


def tokens(text: str) -> list[str]:
    """The words, numbers and marks. Raises NotPromQL at anything else, a `$variable` say."""
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotPromQL(f"not understood: {text[at : at + 20]!r}")
        if match.lastgroup is not None:
            found.append(match.group())
        at = match.end()
    return found


def parse(text: str) -> Expression:
    """What `text` names. Raises NotPromQL for brackets that do not match, unknown functions, a
    range without `rate` or `increase`, and these without a range."""
    words = tokens(text)
    _balanced(words)
    found, at = Expression(), 0
    while at < len(words):
        word, follower = words[at], words[at + 1 : at + 2]
        if word in GROUPS:
            end = words.index(")", at)
            labels = tuple(one for one in words[at + 2 : end] if one != ",")
            found.grouped.append((word, labels))
            at = end
        elif word[0].isalpha() and word not in WORDS and word not in FUNCTIONS:
            if follower == ["("]:
                raise NotPromQL(f"unknown function {word}")
            selector, at = _selector(words, at)
            found.selectors.append(selector)
        at += 1
    return found


def _balanced(words: list[str]) -> None:
    opened: list[str] = []
    for word in words:
        if word in PAIRS.values():
            opened.append(word)
        elif word in PAIRS and (not opened or opened.pop() != PAIRS[word]):
            raise NotPromQL(f"a {word} too many")
    if opened:
        raise NotPromQL(f"{opened[-1]} is not closed")


def _selector(words: list[str], at: int) -> tuple[Selector, int]:
    """The selector that begins at `at`, and where its last word is."""
    before = words[at - 2 : at] if at >= 2 else []
    function = before[0] if before[1:] == ["("] and before[0] in OF_COUNTERS else ""
    selector = Selector(words[at], function=function)
    if words[at + 1 : at + 2] == ["{"]:
        end = words.index("}", at)
        inside = words[at + 2 : end]
        if len(inside) % 4 != 3 or set(inside[3::4]) - {","}:
            raise NotPromQL(f"the matchers of {selector.metric}")
        for name, operator, value in zip(inside[::4], inside[1::4], inside[2::4], strict=True):
            selector.matchers.append((name, operator, value.strip('"')))
        at = end
    if words[at + 1 : at + 2] and words[at + 1].startswith("["):
        at += 1
        selector.range = words[at].strip("[]")
    if bool(selector.range) != bool(function):
        raise NotPromQL(f"{selector.metric}: a range belongs to rate and increase alone")
    return selector, at
