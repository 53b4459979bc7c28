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
ORACLE: Final = "oracle"
BOUNDS: Final = (ORACLE, "central")
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that the default is held to: a ratio, and its limit."""

    what: str
    found: Ratio
    limit: float

    def __str__(self) -> str:
        return f"{self.word}: {self.what} {self.found}, limit {self.limit}"

    @property
    def word(self) -> str:
        """Whether the whole interval is within the limit, or the mean alone, or neither."""
        if self.found.high <= self.limit:
            return "held"
        return "held in the mean" if self.found.value <= self.limit else "MISSED"


def verdicts(strategies: Mapping[str, Figures]) -> list[Verdict]:
    """What the default is held to in one case: the best other rule, the oracle, least-request."""
    ours = strategies[DEFAULT]
    others = {name: figures for name, figures in strategies.items() if name != DEFAULT}
    rival = best(others)
    held_to = [
        (f"mean TTFT by that of {rival}, the best other", rival, "ttft_s", 1.03),
        ("mean TTFT by the oracle's", ORACLE, "ttft_s", 1.15),
        (f"p99 end to end by {BASELINE}'s", BASELINE, "end_to_end_p99_s", 1.05),
    ]
    return [
        Verdict(what, ratio(ours, strategies[name], figure), limit)
        for what, name, figure, limit in held_to
        if name in strategies
    ]


def summary(cases: Mapping[str, Mapping[str, Figures]]) -> list[str]:
    """Markdown: a row for each case, with the verdicts' ratios; what is missed is bold."""
    rows = [
        "| traffic | hit ratio, round robin's | best other rule | TTFT by its (≤ 1.03) "
        "| TTFT by the oracle's (≤ 1.15) | p99 end to end by `least-request`'s (≤ 1.05) |",
        "|---|---|---|---|---|---|",
    ]
    for case, strategies in cases.items():
        ours = strategies[DEFAULT]
        others = {name: figures for name, figures in strategies.items() if name != DEFAULT}
        cells = [
            f"**{v.found}**" if v.found.value > v.limit else str(v.found)
            for v in verdicts(strategies)
        ]
        if len(cells) < 3:
            cells.insert(1, "-")
        baseline = mean(strategies["round-robin"], "hit_ratio")
        rows.append(
            f"| {case} | {mean(ours, 'hit_ratio'):.3f}, {baseline:.3f} | `{best(others)}` | "
            + " | ".join(cells)
            + " |"
        )
    return rows


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
