"""Compares the cells of a study: means, and paired bootstrap intervals over seeds. Pure.

A ratio is that of two means over the same seeds. Its interval: seeds are drawn anew, with
replacement, 4,000 times, both strategies together; the middle 95 % of the ratios.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

DEFAULT: Final = "prefix-cache"
BASELINE: Final = "least-request"
BOUNDS: Final = ("oracle", "central")
_DRAWS: Final = 4000

Figures = Mapping[int, Mapping[str, Any]]
"""Seed → the figures of one strategy on one case."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of two means, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def gathered(rows: Iterable[Mapping[str, Any]], of_set: str) -> dict[str, dict[str, Figures]]:
    """Case → strategy → figures by seed, in the order in which they come."""
    found: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = defaultdict(dict)
    for row in rows:
        if row["set"] == of_set:
            found[row["case"]].setdefault(row["strategy"], {})[row["seed"]] = row
    return {case: dict(strategies) for case, strategies in found.items()}


def mean(figures: Figures, name: str) -> float:
    """Over all seeds."""
    return sum(row[name] for row in figures.values()) / len(figures)


def ratio(one: Figures, other: Figures, name: str) -> Ratio:
    """The mean of `one` by that of `other`, over the seeds that both have."""
    seeds = sorted(set(one) & set(other))
    pairs = [(one[seed][name], other[seed][name]) for seed in seeds]
    rng = random.Random(f"{name} {len(pairs)}")
    drawn = sorted(_of(rng.choices(pairs, k=len(pairs))) for _ in range(_DRAWS))
    return Ratio(_of(pairs), drawn[round(0.025 * _DRAWS)], drawn[round(0.975 * _DRAWS) - 1])


def _of(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs)


def best(strategies: Mapping[str, Figures], name: str = "ttft_s") -> str:
    """The strategy with the lowest mean, bounds left out."""
    rules = [strategy for strategy in strategies if strategy not in BOUNDS]
    return min(rules, key=lambda strategy: mean(strategies[strategy], name))


def verdicts(strategies: Mapping[str, Figures]) -> list[str]:
    """What the default is held to, line by line, for one case."""
    ours = strategies[DEFAULT]
    others = {name: figures for name, figures in strategies.items() if name != DEFAULT}
    rival = best(others)
    lines = [
        _line(
            f"mean TTFT by that of {rival}, the best other",
            ratio(ours, others[rival], "ttft_s"),
            1.03,
        ),
    ]
    if "oracle" in strategies:
        lines.append(
            _line("mean TTFT by the oracle's", ratio(ours, strategies["oracle"], "ttft_s"), 1.15)
        )
    p99 = ratio(ours, strategies[BASELINE], "end_to_end_p99_s")
    lines.append(_line(f"p99 end to end by {BASELINE}'s", p99, 1.05))
    return lines


def _line(what: str, found: Ratio, limit: float) -> str:
    held = (
        "held" if found.high <= limit else "held in the mean" if found.value <= limit else "MISSED"
    )
    return f"  {held}: {what} {found}, limit {limit}"


def table(strategies: Mapping[str, Figures]) -> list[str]:
    """Markdown rows, the lowest mean TTFT first."""
    head = (
        "| strategy | hit ratio | TTFT mean | p99 | end to end mean | p99 | inter-token p99 "
        "| goodput | busiest pod |"
    )
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    for name in sorted(strategies, key=lambda strategy: mean(strategies[strategy], "ttft_s")):
        f = strategies[name]
        rows.append(
            f"| `{name}` | {mean(f, 'hit_ratio'):.3f} | {_ms(mean(f, 'ttft_s'))} "
            f"| {_ms(mean(f, 'ttft_p99_s'))} | {mean(f, 'end_to_end_s'):.2f} s "
            f"| {mean(f, 'end_to_end_p99_s'):.2f} s | {_ms(mean(f, 'inter_token_p99_s'))} "
            f"| {100 * mean(f, 'goodput'):.1f} % | {mean(f, 'requests_spread'):.2f} |"
        )
    return rows


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
