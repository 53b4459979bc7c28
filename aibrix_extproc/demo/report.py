"""What the demo found: figures per strategy, targets, and whether they were reached. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from aibrix_extproc.demo.summary import Summary, ratio
from aibrix_extproc.stack.scrape import EngineFigures

PREFIX_CACHE: Final = "prefix-cache"
RANDOM: Final = "random"

SHARE_OF_YARDSTICK: Final = 0.9
"""prefix-cache must reach this share of what one engine with an endless cache would reuse."""
FACTOR_OVER_RANDOM: Final = 1.5
LARGEST_SHARE_OF_A_POD: Final = 0.6
POINTS_APART: Final = 0.01
"""What was known to be held when engines took their requests, against what they reused."""


@dataclass(frozen=True, slots=True)
class StrategyResult:
    """One strategy: what clients saw, what engines say, what the processor expected."""

    strategy: str
    clients: Summary
    engines: dict[str, EngineFigures]
    """By pod."""
    predicted_hit_ratio: float | None
    """The processor's, of the prompt tokens that it knew: those expected to be reused as far as
    the prompt was known at the decision."""
    scheduled_hit_ratio: float | None = None
    """The processor's: those that it knew to be held when the engine took the request."""

    @property
    def hit_ratio(self) -> float:
        """By the engines' own count: prompt tokens reused, of those looked up."""
        return hit_ratio(list(self.engines.values()))

    @property
    def largest_share(self) -> float:
        """The share of requests that the busiest pod answered."""
        answered = [figures.answered for figures in self.engines.values()]
        return ratio(max(answered, default=0), sum(answered)) or 0.0


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The same requests, one after another, to one engine whose cache never runs full."""

    clients: Summary
    engine: EngineFigures

    @property
    def hit_ratio(self) -> float:
        """By the engine's own count."""
        return hit_ratio([self.engine])


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The whole demo."""

    results: tuple[StrategyResult, ...]
    yardstick: Yardstick
    duration_s: float

    def of(self, strategy: str) -> StrategyResult:
        """The result of one strategy. Raises KeyError."""
        for result in self.results:
            if result.strategy == strategy:
                return result
        raise KeyError(strategy)


def hit_ratio(engines: Sequence[EngineFigures]) -> float:
    """Tokens reused of tokens looked up, over all engines; 0 of nothing."""
    hits = sum(figures.hit_tokens for figures in engines)
    return ratio(hits, sum(figures.queried_tokens for figures in engines)) or 0.0


def shortfalls(report: DemoReport) -> list[str]:
    """One sentence for each target that was missed; empty: the demo holds."""
    missed = []
    for result in report.results:
        clients = result.clients
        if clients.errors:
            reasons = ", ".join(f"{n} × {why}" for why, n in clients.errors_by_reason.items())
            missed.append(f"{result.strategy}: {clients.errors} requests failed ({reasons})")
        if result.largest_share > LARGEST_SHARE_OF_A_POD:
            missed.append(
                f"{result.strategy}: one pod got {result.largest_share:.0%} of the requests, "
                f"more than {LARGEST_SHARE_OF_A_POD:.0%}"
            )
        if not clients.errors and clients.prompt_tokens != report.yardstick.clients.prompt_tokens:
            missed.append(
                f"{result.strategy}: {clients.prompt_tokens} prompt tokens were sent, but "
                f"{report.yardstick.clients.prompt_tokens} for the yardstick: not the same requests"
            )
    if report.yardstick.clients.errors:
        missed.append(f"yardstick: {report.yardstick.clients.errors} requests failed")
    return missed + _ratio_shortfalls(report)


def _ratio_shortfalls(report: DemoReport) -> list[str]:
    missed = []
    reached = report.of(PREFIX_CACHE).hit_ratio
    wanted = SHARE_OF_YARDSTICK * report.yardstick.hit_ratio
    if reached < wanted:
        missed.append(
            f"prefix-cache: the engines' hit ratio is {reached:.1%}, less than {wanted:.1%} "
            f"({SHARE_OF_YARDSTICK:.0%} of the yardstick)"
        )
    wanted = FACTOR_OVER_RANDOM * report.of(RANDOM).hit_ratio
    if reached < wanted:
        missed.append(
            f"prefix-cache: the engines' hit ratio is {reached:.1%}, less than {wanted:.1%} "
            f"({FACTOR_OVER_RANDOM:g} times that of random)"
        )
    return missed + _belief_shortfalls(report.of(PREFIX_CACHE))


def _belief_shortfalls(result: StrategyResult) -> list[str]:
    known, reused = result.scheduled_hit_ratio, result.hit_ratio
    if known is None:
        return ["prefix-cache: nothing is known of when the engines took the requests"]
    if abs(known - reused) <= POINTS_APART:
        return []
    return [
        f"prefix-cache: by what the processor knew at scheduling the hit ratio is {known:.1%}, "
        f"by the engines' own count {reused:.1%}: more than a point apart"
    ]


def to_json(report: DemoReport) -> dict[str, Any]:
    """The content of `demo-report.json`."""
    return {
        "holds": not shortfalls(report),
        "shortfalls": shortfalls(report),
        "duration_s": round(report.duration_s, 1),
        "yardstick": {
            "hit_ratio": report.yardstick.hit_ratio,
            "prompt_tokens": report.yardstick.engine.queried_tokens,
            "hit_tokens": report.yardstick.engine.hit_tokens,
        },
        "strategies": {result.strategy: _strategy_json(result) for result in report.results},
    }


def _strategy_json(result: StrategyResult) -> dict[str, Any]:
    return {
        "hit_ratio": result.hit_ratio,
        "predicted_hit_ratio": result.predicted_hit_ratio,
        "scheduled_hit_ratio": result.scheduled_hit_ratio,
        "largest_share": result.largest_share,
        "engines": {
            pod: {
                "requests": figures.answered,
                "prompt_tokens": figures.queried_tokens,
                "hit_tokens": figures.hit_tokens,
            }
            for pod, figures in result.engines.items()
        },
        "clients": result.clients.to_json(),
    }
