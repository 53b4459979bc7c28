"""What limits trust in a load test, in words: the generator's limits, failures, what is missing.

Owns the limits at which each is said. Pure.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from aibrix_extproc.loadtest.report.compare import Comparison
from aibrix_extproc.loadtest.report.results import NullRun
from aibrix_extproc.loadtest.report.summary import RunSummary
from aibrix_extproc.loadtest.report.words import clean, count, duration, percent, rate

CEILING_FACTOR: Final = 2.0
"""The null run must have been this much faster than the rate that is reported."""
GENERATOR_CPU_LIMIT: Final = 0.7
MACHINE_CPU_LIMIT: Final = 0.9
LATENESS_LIMIT: Final = 0.05
"""Of TTFT, mean by mean and 99th percentile by 99th percentile."""
PROMPTS_DIFFER: Final = 0.02
FEW_REQUESTS: Final = 500
"""Below it the 99th percentile is one of the five slowest."""

Weight = Literal["serious", "note"]


@dataclass(frozen=True, slots=True)
class Doubt:
    """One reason for care."""

    code: str
    """Stable, for programs."""
    weight: Weight
    """`serious`: the figures may say something else than they seem to."""
    text: str


def doubts(
    runs: Sequence[RunSummary], null_run: NullRun | None, comparisons: Sequence[Comparison]
) -> tuple[Doubt, ...]:
    """The serious ones first."""
    found = [*_ceiling(runs, null_run), *_results(runs), *_generator(runs), *_prompts(runs)]
    found += [*_few(runs), *_pairs(comparisons), *_missing(runs)]
    return tuple(sorted(found, key=lambda doubt: doubt.weight != "serious"))


def verdict(runs: Sequence[RunSummary], null_run: NullRun | None) -> str:
    """Whether the generator was itself the bottleneck, in one sentence."""
    if null_run is None:
        return "Not known whether the generator was the bottleneck: no null run was made."
    ceiling = rate(null_run.requests_per_s)
    if list(_ceiling(runs, null_run)):
        return f"The generator may itself have been the bottleneck: its ceiling is {ceiling}."
    above = f"{null_run.requests_per_s / (highest_rate(runs) or 1):.1f} × the highest rate here"
    if any(doubt.code in _ITS_OWN for doubt in _generator(runs)):
        return f"The generator's ceiling is {ceiling}, {above}, but it was late or busy: see below."
    return f"The generator was not the bottleneck: its ceiling is {ceiling}, {above}."


_ITS_OWN: Final = ("generator_late", "generator_cpu")


def highest_rate(runs: Iterable[RunSummary]) -> float:
    """The highest that was offered or answered, in requests/s."""
    return max(max(run.offered_per_s or 0.0, run.answered_per_s) for run in runs)


def _ceiling(runs: Sequence[RunSummary], null_run: NullRun | None) -> Iterator[Doubt]:
    if null_run is None:
        yield Doubt(
            "no_null_run",
            "serious",
            "No null run was made: whether the generator itself was the bottleneck is not known.",
        )
        return
    if null_run.errors:
        yield Doubt(
            "null_run_failed",
            "serious",
            f"{count(null_run.errors)} of {count(null_run.requests)} requests of the null run "
            "failed: its ceiling is not to be trusted.",
        )
    wanted = CEILING_FACTOR * highest_rate(runs)
    if null_run.requests_per_s < wanted:
        yield Doubt(
            "generator_ceiling",
            "serious",
            f"Against an upstream that answers at once the generator reached "
            f"{rate(null_run.requests_per_s)}, less than {CEILING_FACTOR:g} × the highest rate "
            f"here ({rate(highest_rate(runs))}): it may itself be the bottleneck. Ask for less, or "
            "run it on a faster machine.",
        )


def _results(runs: Sequence[RunSummary]) -> Iterator[Doubt]:
    if cut := [run for run in runs if run.interrupted]:
        yield Doubt("interrupted", "serious", f"{_names(cut)}: ended by hand before its time.")
    if failed := [run for run in runs if run.errors]:
        each = _each(failed, lambda r: f"{count(r.errors)} of {count(r.requests)} ({_reasons(r)})")
        yield Doubt(
            "errors",
            "serious",
            f"Requests failed: {each}. Times are those of the others, maybe the easier ones.",
        )
    if growing := [run for run in runs if run.steady is False]:
        yield Doubt(
            "not_steady",
            "serious",
            f"{_names(growing)}: TTFT grew throughout. Requests came faster than they were "
            "answered, so that the figures depend on how long the test was.",
        )


def _generator(runs: Sequence[RunSummary]) -> Iterator[Doubt]:
    if late := [run for run in runs if _late(run)]:
        each = _each(
            late, lambda r: f"{duration(r.lateness_s.mean)}, p99 {duration(r.lateness_s.p99)}"
        )
        yield Doubt(
            "generator_late",
            "serious",
            f"Requests left late, in the mean by: {each}. That is the generator's own, and part of "
            "every time here.",
        )
    busy = [run for run in runs if (run.generator_cpu_share or 0) > GENERATOR_CPU_LIMIT]
    if busy:
        each = _each(busy, lambda r: percent(r.generator_cpu_share))
        yield Doubt(
            "generator_cpu",
            "serious",
            f"The generator used most of a core ({each}). It may have been slow to see what came.",
        )
    full = [run for run in runs if (run.machine_cpu_share or 0) > MACHINE_CPU_LIMIT]
    if full:
        each = _each(full, lambda r: percent(r.machine_cpu_share))
        yield Doubt(
            "machine_cpu",
            "serious",
            f"The generator's machine was busy ({each}). All that ran there waited for the rest.",
        )


def _few(runs: Sequence[RunSummary]) -> Iterator[Doubt]:
    if few := [run for run in runs if 0 < run.answered < FEW_REQUESTS]:
        each = _each(few, lambda r: count(r.answered))
        yield Doubt(
            "few_requests",
            "note",
            f"Few requests were answered ({each}). The 99th percentile rests on the few slowest.",
        )


def _names(runs: Iterable[RunSummary]) -> str:
    return ", ".join(clean(run.strategy) for run in runs)


def _each(runs: Iterable[RunSummary], said: Callable[[RunSummary], str]) -> str:
    return "; ".join(f"{clean(run.strategy)} {said(run)}" for run in runs)


def _reasons(run: RunSummary) -> str:
    shown = [f"{count(n)} × {clean(why)}" for why, n in run.errors_by_reason.items()]
    more = f", {len(shown) - 4} more reasons" if len(shown) > 4 else ""
    return ", ".join(shown[:4]) + more


def _late(run: RunSummary) -> bool:
    lateness, ttft = run.lateness_s, run.ttft_s
    return lateness.mean > LATENESS_LIMIT * ttft.mean or lateness.p99 > LATENESS_LIMIT * ttft.p99


def _prompts(runs: Sequence[RunSummary]) -> Iterator[Doubt]:
    lengths = [run.prompt_tokens / run.answered for run in runs if run.answered]
    if lengths and max(lengths) - min(lengths) > PROMPTS_DIFFER * max(lengths):
        yield Doubt(
            "prompts_differ",
            "serious",
            "The strategies were not asked the same: a prompt had "
            f"{min(lengths):,.0f} to {max(lengths):,.0f} tokens in the mean.",
        )


def _pairs(comparisons: Sequence[Comparison]) -> Iterator[Doubt]:
    if comparisons and comparisons[0].low is None:
        yield Doubt(
            "few_pairs",
            "note",
            f"Only {count(comparisons[0].pairs)} requests were answered under both strategies of "
            "the headline: too few for an interval.",
        )
    elif comparisons:
        yield Doubt(
            "one_seed",
            "note",
            "One test is one seed on one machine. Its interval is about chance within it; other "
            "seeds and other hours may differ more.",
        )


def _missing(runs: Sequence[RunSummary]) -> Iterator[Doubt]:
    untold = [run for run in runs if run.hit_ratio_requests < run.answered]
    if untold:
        yield Doubt(
            "reuse_untold",
            "note",
            f"{_names(untold)}: not every answer says how much of its prompt was reused, and "
            "the hit ratio is of the others. vLLM tells with --enable-prompt-tokens-details.",
        )
    if any(run.answered and not run.pods for run in runs):
        yield Doubt(
            "pods_unknown",
            "note",
            "Which pod answered is not known: set AIBRIX_EXTPROC_DEBUG_HEADERS, or let the "
            "engines' /metrics be read.",
        )
    if any(run.answered and not run.curves.decided for run in runs):
        yield Doubt(
            "decisions_unknown",
            "note",
            "How the processor decided is not known: its /metrics was not read.",
        )
