"""Figures and foreign text as people read them, the same in every part of the report. Pure."""

import math
import unicodedata
from typing import Final

NOTHING: Final = "–"
LONGEST: Final = 120
_HIDDEN: Final = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})


def duration(seconds: float | None) -> str:
    """`0.42 ms`, `42.0 ms`, `420 ms`, `4.20 s`, `42.0 s`, `420 s`; a dash for what is not known."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    size = abs(seconds)
    if size >= 0.9995:
        return f"{seconds:,.{_digits(size)}f} s"
    return f"{1e3 * seconds:.{_digits(1e3 * size)}f} ms"


def _digits(size: float) -> int:
    return 2 if size < 9.995 else 1 if size < 99.95 else 0


def percent(share: float | None) -> str:
    """`61.3 %`; a dash for what is not known."""
    return NOTHING if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def points(difference: float | None) -> str:
    """`+1.3 points`, of two shares; a dash for what is not known."""
    return NOTHING if difference is None else f"{100 * difference:+.1f} points"


def rate(per_s: float | None) -> str:
    """`12.3/s`, `1,234/s`; a dash for what is not known."""
    return NOTHING if per_s is None else f"{per_s:,.{1 if per_s < 100 else 0}f}/s"


def factor(value: float) -> str:
    """`1.25 ×`; a dash for what is not known."""
    return f"{value:.2f} ×" if math.isfinite(value) else NOTHING


def count(number: int | None) -> str:
    """`12,345`; a dash for what is not known."""
    return NOTHING if number is None else f"{number:,}"


def visible(text: str) -> str:
    """Without control characters and such as turn the direction of what follows. Not escaped."""
    return "".join("\ufffd" if unicodedata.category(c) in _HIDDEN else c for c in text)


def clean(text: str) -> str:
    """A name from outside that can do nothing: visible, and not too long. Not escaped."""
    shown = visible(text)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"
