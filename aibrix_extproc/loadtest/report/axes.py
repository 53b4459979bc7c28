"""Scales and their ticks: where a value stands from 0 to 1, and what is written beside. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from aibrix_extproc.loadtest.report.words import duration

MOST_TICKS: Final = 5
_STEPS: Final = (tuple(range(1, 10)), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
_ROOM: Final = 0.19
"""Of the width, for a label, on the narrowest screen."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark at a place from 0 to 1."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Logarithmic:
    """Durations from `low_s` to `high_s`, both above 0 and not the same."""

    low_s: float
    high_s: float

    def at(self, value_s: float) -> float:
        """0 to 1, also for what is outside."""
        share = math.log(max(value_s, self.low_s) / self.low_s) / math.log(self.high_s / self.low_s)
        return min(1.0, share)

    def ticks(self) -> list[Tick]:
        """Powers of ten; with steps between them where there is room."""
        first, last = math.floor(math.log10(self.low_s)), math.ceil(math.log10(self.high_s))
        for steps in _STEPS:
            values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            inside = [v for v in values if self.low_s <= v <= self.high_s]
            if all(self.at(b) - self.at(a) >= _ROOM for a, b in pairwise(inside)):
                break
        else:
            inside = inside[:: math.ceil(len(inside) / MOST_TICKS)]
        return [Tick(self.at(value), short(value)) for value in inside]


@dataclass(frozen=True, slots=True)
class Linear:
    """From 0 to `high`, which is above 0."""

    high: float

    def at(self, value: float) -> float:
        """0 to 1, also for what is outside."""
        return min(1.0, max(0.0, value / self.high))

    def marks(self, most: int = MOST_TICKS) -> list[float]:
        """At most so many round values and 0."""
        step = round_up(self.high / most)
        return [step * number for number in range(math.floor(self.high / step + 1e-9) + 1)]


def round_up(value: float) -> float:
    """1, 2 or 5 times a power of ten, not below a value above 0."""
    unit = 10.0 ** math.floor(math.log10(value))
    return next(unit * step for step in (1, 2, 5, 10) if unit * step >= value * (1 - 1e-9))


def logarithmic(values_s: Iterable[float], least_s: float = 0.0) -> Logarithmic | None:
    """Around all of these that are above `least_s`; None where there are none."""
    known = [value for value in values_s if value > least_s]
    if not known:
        return None
    low, high = min(known), max(known)
    if high < 2 * low:  # one value, or nearly: a factor of two around it
        low, high = low / 1.5, high * 1.5
    return Logarithmic(low, high)


def seconds(high_s: float) -> list[Tick]:
    """Time since the start, on a scale from 0 to `high_s`."""
    scale = Linear(high_s)
    return [Tick(scale.at(mark), f"{mark:,g} s") for mark in scale.marks(5)]


def amounts(scale: Linear) -> list[Tick]:
    """Numbers of anything: `1,200`, `12 k`, `3 M`."""
    return [Tick(scale.at(mark), amount(mark)) for mark in scale.marks(6)]


def amount(value: float) -> str:
    """Short enough to stand beside an axis."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= unit:
            return f"{value / (1e3 if name == ' k' else unit):,g}{name}"
    return f"{value:,g}"


def short(value_s: float) -> str:
    """A round duration: `5 ms`, `20 µs`, `1 s`."""
    if value_s < 0.9995e-3:
        return f"{1e6 * value_s:,.3g} µs"
    if value_s < 0.9995:
        return f"{1e3 * value_s:,.3g} ms"
    return f"{value_s:,.4g} s" if value_s < 1e4 else duration(value_s)
