"""The whole report: figures of every run, the answer in one sentence, and what to think of it.

Pure: `summarise` takes what was measured. What it is written as is `document`'s (JSON), `page`'s
(HTML) and `table`'s (the terminal).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aibrix_extproc.loadtest.report.compare import Comparison, compare
from aibrix_extproc.loadtest.report.doubts import Doubt, doubts
from aibrix_extproc.loadtest.report.results import Environment, LoadTest, NullRun, RunResult, Slo
from aibrix_extproc.loadtest.report.summary import RunSummary, summarise_run
from aibrix_extproc.loadtest.report.words import clean, duration, percent

BASELINE: Final = "least-request"
"""What the best is compared with, where it was run too."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that is written."""

    headline: str
    """The answer."""
    comparisons: tuple[Comparison, ...]
    """Of every other strategy with the baseline; the first is the headline's."""
    doubts: tuple[Doubt, ...]
    """What limits trust, the heaviest first."""
    model: str
    workload: str
    target: str
    seed: int
    started_unix_s: float
    environment: Environment
    options: Mapping[str, str | int | float | bool | None]
    slo: Slo
    null_run: NullRun | None
    runs: tuple[RunSummary, ...]


def summarise(test: LoadTest) -> Report:
    """Everything that follows from a test. Raises ValueError where it has no run."""
    if not test.runs:
        raise ValueError("a load test without a run has no report")
    runs = tuple(summarise_run(run, test.slo) for run in test.runs)
    comparisons = _comparisons(test.runs, runs)
    return Report(
        headline=_headline(runs, comparisons),
        comparisons=comparisons,
        doubts=doubts(runs, test.null_run, comparisons),
        model=clean(test.model),
        workload=clean(test.workload),
        target=clean(test.target),
        seed=test.seed,
        started_unix_s=test.started_unix_s,
        environment=test.environment,
        options=test.options,
        slo=test.slo,
        null_run=test.null_run,
        runs=runs,
    )


def _comparisons(
    measured: Sequence[RunResult], runs: Sequence[RunSummary]
) -> tuple[Comparison, ...]:
    """The best first. The baseline is `least-request`; else, or where that is best, the second."""
    ordered = sorted(
        (place for place, run in enumerate(runs) if run.ttft_s.mean == run.ttft_s.mean),
        key=lambda place: runs[place].ttft_s.mean,
    )
    if len(ordered) < 2:
        return ()
    named = [place for place in ordered[1:] if runs[place].strategy == BASELINE]
    baseline = named[0] if named else ordered[1]
    found = (compare(measured[place], measured[baseline]) for place in ordered if place != baseline)
    return tuple(one for one in found if one is not None)


def _headline(runs: Sequence[RunSummary], comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        run = next((run for run in runs if run.answered), runs[0])
        if not run.answered:
            return f"{clean(run.strategy)}: no request was answered"
        parts = [f"mean TTFT {duration(run.ttft_s.mean)}"]
        if run.hit_ratio is not None:
            parts.append(f"hit ratio {percent(run.hit_ratio)}")
        return f"{clean(run.strategy)}: {', '.join(parts)}"
    best = comparisons[0]
    name, other = clean(best.strategy), clean(best.baseline)
    failed = _failed(next(run for run in runs if run.strategy == best.strategy))
    if best.low is None or best.high is None:
        said = f"{name}: mean TTFT {_change(best.change)} than {other}"
        return f"{said} (too few requests to be sure){failed}"
    if not best.tells:
        interval = f"95 % interval {100 * best.low:+.0f} to {100 * best.high:+.0f} %"
        return (
            f"{name} and {other}: no difference in mean TTFT that this test can tell ({interval})"
        )
    low, high = sorted((abs(best.low), abs(best.high)))
    interval = f"95 % interval {100 * low:.0f} to {100 * high:.0f} %"
    return f"{name}: mean TTFT {_change(best.change)} than {other} ({interval}){failed}"


def _failed(run: RunSummary) -> str:
    """A strategy that fails the hard requests is fast at the others."""
    return f", but {percent(run.errors / run.requests)} of its requests failed" * bool(run.errors)


def _change(change: float) -> str:
    return f"{abs(100 * change):.0f} % {'lower' if change < 0 else 'higher'}"
