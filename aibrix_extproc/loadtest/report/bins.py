"""Many values in few numbers: counts in bins that grow by 4.4 %, and counts in a square.

Owns how values become bins, and loses none: the counts of all bins are the number of values. Pure.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

PER_OCTAVE: Final = 16
"""Bins between a value and its double."""
LOWEST: Final = -20 * PER_OCTAVE
"""The bin of all that is below about 1 µs, 0 and negative values included."""
SQUARE: Final = 20
"""Cells along each side of a square of shares."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Durations in seconds, counted."""

    counts: tuple[tuple[int, int], ...] = ()
    """(Bin, how many values), by bin; bins without any are left out."""

    @property
    def total(self) -> int:
        """All values."""
        return sum(number for _, number in self.counts)

    def cumulative(self) -> list[tuple[float, float]]:
        """(Seconds, share of the values that are less), rising; empty where there are none."""
        total, seen = self.total, 0
        points: list[tuple[float, float]] = []
        for place, number in self.counts:
            if not points:
                points.append((lower_s(place), 0.0))
            elif points[-1][0] < lower_s(place):
                points.append((lower_s(place), seen / total))
            seen += number
            points.append((upper_s(place), seen / total))
        return points

    def to_json(self) -> dict[str, Any]:
        """Upper ends, and the number of values in each bin; a bin begins 4.4 % below its end."""
        return {
            "upper_s": [float(f"{upper_s(place):.6g}") for place, _ in self.counts],
            "count": [number for _, number in self.counts],
        }


def lower_s(place: int) -> float:
    """Where a bin begins; it holds this value. Of the lowest: where its neighbours' rule ends."""
    return float(2.0 ** (place / PER_OCTAVE))


def upper_s(place: int) -> float:
    """Where the next one begins."""
    return lower_s(place + 1)


def bin_of(value_s: float) -> int:
    """The bin of a finite value."""
    if value_s < upper_s(LOWEST):
        return LOWEST
    place = math.floor(PER_OCTAVE * math.log2(value_s))
    while lower_s(place) > value_s:  # the logarithm is rounded
        place -= 1
    while upper_s(place) <= value_s:
        place += 1
    return place


def bins_of(values_s: Iterable[float]) -> Bins:
    """Of finite values."""
    return Bins(tuple(sorted(Counter(map(bin_of, values_s)).items())))


def bins_of_counts(times: Mapping[int, int], unit_s: float) -> Bins:
    """Of values counted in whole units: value in units → how often."""
    counts: Counter[int] = Counter()
    for value, often in times.items():
        counts[bin_of(value * unit_s)] += often
    return Bins(tuple(sorted(counts.items())))


def square_of(shares: Iterable[tuple[float, float]]) -> tuple[tuple[int, int, int], ...]:
    """Pairs of shares, 0 to 1, counted in SQUARE × SQUARE cells: (column, row, how many).

    What is outside 0 to 1 counts in the cell at the edge.
    """
    counts = Counter((_cell(x), _cell(y)) for x, y in shares)
    return tuple((x, y, number) for (x, y), number in sorted(counts.items()))


def _cell(share: float) -> int:
    return min(SQUARE - 1, max(0, math.floor(share * SQUARE)))
