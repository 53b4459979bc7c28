"""The lines of the table of figures, the same on the terminal and on the page.

Each names the figure by its path in a run of `report.json`, so that the two cannot differ. Pure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from aibrix_extproc.loadtest.report import words
from aibrix_extproc.loadtest.report.summary import RunSummary


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of every run."""

    label: str
    path: str
    """Names joined by dots."""
    text: Callable[[Any], str]

    def cell(self, run: RunSummary) -> str:
        """As people read it."""
        return self.text(attrgetter(self.path)(run))


@dataclass(frozen=True, slots=True)
class Group:
    """Figures that belong together."""

    title: str
    rows: tuple[Row, ...]


def shown(runs: Sequence[RunSummary]) -> list[Group]:
    """What is known of at least one run."""
    groups = []
    for group in GROUPS:
        rows = tuple(row for row in group.rows if any(row.cell(r) != words.NOTHING for r in runs))
        if rows:
            groups.append(Group(group.title, rows))
    return groups


def _times(title: str, name: str, percentiles: Sequence[str] = ("p50", "p90", "p99")) -> Group:
    places = ("mean", *percentiles)
    return Group(title, tuple(Row(p, f"{name}.{p}", words.duration) for p in places))


GROUPS: Final = (
    _times("TTFT", "ttft_s"),
    _times("Inter-token", "inter_token_s"),
    _times("End to end", "end_to_end_s"),
    Group(
        "Goodput",
        (
            Row("within the SLO", "good_per_s", words.rate),
            Row("of all requests", "good_share", words.percent),
        ),
    ),
    Group(
        "Reuse",
        (
            Row("hit ratio", "hit_ratio", words.percent),
            Row("as predicted", "predicted_hit_ratio", words.percent),
            Row("predicted - actual", "predicted_gap", words.points),
        ),
    ),
    Group(
        "Busiest pod by mean",
        (
            Row("requests", "requests_spread", words.factor),
            Row("prompt computed", "prefill_spread", words.factor),
        ),
    ),
    Group(
        "Requests",
        (
            Row("sent", "requests", words.count),
            Row("failed", "errors", words.count),
            Row("offered", "offered_per_s", words.rate),
            Row("answered", "answered_per_s", words.rate),
            Row("run took", "duration_s", words.duration),
            Row("prompt tokens", "prompt_tokens", words.count),
            Row("output tokens", "output_tokens", words.count),
        ),
    ),
    Group(
        "Generator",
        (
            Row("late, mean", "lateness_s.mean", words.duration),
            Row("late, p99", "lateness_s.p99", words.duration),
            Row("share of a core", "generator_cpu_share", words.percent),
            Row("machine busy", "machine_cpu_share", words.percent),
        ),
    ),
)
