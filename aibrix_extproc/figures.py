"""What many values come to: means, percentiles, spread. Pure; shared by all who report figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

GAP_RESOLUTION_S: Final = 1e-5
"""Gaps between tokens are counted by this much: some millions of them in each run."""
_SHARES: Final = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Seconds. Percentiles are nearest ranks: each is one of the values."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Distribution":
        """NaN throughout where there are no values."""
        if not values:
            return cls(math.nan, math.nan, math.nan, math.nan)
        ordered = sorted(values)
        mean = math.fsum(ordered) / len(ordered)
        return cls(mean, *(rank(ordered, share) for share in _SHARES))

    @classmethod
    def of_counts(cls, times: Mapping[int, int], unit_s: float) -> "Distribution":
        """Of values counted in whole units: value in units → how often. NaN throughout where there
        are none."""
        number = sum(times.values())
        if not number:
            return cls.of(())
        mean = sum(value * often for value, often in times.items()) / number
        found: list[float] = []
        seen = 0
        wanted = [math.ceil(share * number) for share in _SHARES]
        for value in sorted(times):
            seen += times[value]
            while len(found) < len(wanted) and seen >= wanted[len(found)]:
                found.append(value * unit_s)
        return cls(mean * unit_s, *found)


def rank(ordered: Sequence[float], share: float) -> float:
    """The smallest of the sorted values that at least this share does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> float:
    """The largest by the mean; NaN where there are none, or all are 0."""
    total = sum(values)
    return max(values) * len(values) / total if total else math.nan


def plain(value: Any) -> Any:
    """For JSON: a figure that does not exist (NaN, infinity) is null, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value
