"""The figures of a load test: what follows from what was measured. Pure.

The words are the simulator's for the same things. Times are those of requests that were answered
in full, from when they were due. What could not be known is None, or NaN within a distribution.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aibrix_extproc.figures import GAP_RESOLUTION_S, Distribution, spread
from aibrix_extproc.loadtest.report import series
from aibrix_extproc.loadtest.report.bins import Bins, bins_of, bins_of_counts, square_of
from aibrix_extproc.loadtest.report.pods import PodSummary, pods_of
from aibrix_extproc.loadtest.report.results import RequestResult, RunResult, Slo


@dataclass(frozen=True, slots=True)
class Curves:
    """What the plots show."""

    ttft: Bins
    inter_token: Bins
    end_to_end: Bins
    reuse: tuple[series.Reuse, ...]
    """Hit ratio over time."""
    decided: tuple[series.Decided, ...]
    """Decisions over time."""
    predicted_actual: tuple[tuple[int, int, int], ...]
    """Requests by the share of their prompt that was predicted and that was reused:
    (column, row, how many), see `bins.square_of`."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One strategy."""

    strategy: str
    requests: int
    answered: int
    """In full."""
    errors: int
    errors_by_reason: dict[str, int]
    interrupted: bool
    duration_s: float
    offered_per_s: float | None
    answered_per_s: float
    good_per_s: float | None
    """Goodput: requests in a second that kept the SLO; None: no SLO is set."""
    good_share: float | None
    """Of all requests, those that kept it."""
    prompt_tokens: int
    """Of answered requests."""
    output_tokens: int
    hit_ratio: float | None
    """The engines' own, by `usage`: prompt tokens reused, of all prompt tokens whose reuse is
    told."""
    hit_ratio_requests: int
    """Answered requests whose reuse is told."""
    predicted_hit_ratio: float | None
    """What the processor expected when it decided: of the same requests where their answers tell,
    else by its counters. None where the strategy looks at no prompt."""
    predicted_gap: float | None
    """Predicted minus the engines' own: above 0, too much was believed."""
    ttft_s: Distribution
    inter_token_s: Distribution
    end_to_end_s: Distribution
    lateness_s: Distribution
    """From when a request was due until it left: the generator's own. Part of all the others."""
    requests_spread: float
    """Requests of the pod that had most, by the mean."""
    prefill_spread: float
    """The same for prompt tokens computed."""
    pods: tuple[PodSummary, ...]
    steady: bool | None
    """Whether TTFT in the last third was less than twice that of the middle third; None: too few
    requests to say."""
    generator_cpu_share: float | None
    machine_cpu_share: float | None
    curves: Curves


LEAST_FOR_STEADY = 90


def summarise_run(run: RunResult, slo: Slo) -> RunSummary:
    """The figures of one run."""
    answered = [request for request in run.requests if request.error is None]
    reasons = Counter(r.error for r in run.requests if r.error is not None)
    ttft = [ttft_s(request) for request in answered if request.first_token_s is not None]
    whole = [request.ended_s - request.intended_s for request in answered]
    gaps = _gaps(answered)
    told = [r for r in answered if r.prompt_tokens and r.cached_tokens is not None]
    hit = _ratio(sum(r.cached_tokens or 0 for r in told), sum(r.prompt_tokens for r in told))
    predicted = _predicted(run, told)
    good = _good(answered, slo)
    pods = pods_of(run)
    return RunSummary(
        strategy=run.strategy,
        requests=len(run.requests),
        answered=len(answered),
        errors=reasons.total(),
        errors_by_reason=dict(reasons.most_common()),
        interrupted=run.interrupted,
        duration_s=run.duration_s,
        offered_per_s=run.offered_per_s if run.offered_per_s is not None else _offered(run),
        answered_per_s=len(answered) / run.duration_s if run.duration_s else 0.0,
        good_per_s=None if good is None or not run.duration_s else good / run.duration_s,
        good_share=None if good is None else _ratio(good, len(run.requests)),
        prompt_tokens=sum(request.prompt_tokens for request in answered),
        output_tokens=sum(request.answer_tokens for request in answered),
        hit_ratio=hit,
        hit_ratio_requests=len(told),
        predicted_hit_ratio=predicted,
        predicted_gap=None if predicted is None or hit is None else predicted - hit,
        ttft_s=Distribution.of(ttft),
        inter_token_s=Distribution.of_counts(gaps, GAP_RESOLUTION_S),
        end_to_end_s=Distribution.of(whole),
        lateness_s=Distribution.of([r.sent_s - r.intended_s for r in run.requests]),
        requests_spread=_spread(pod.requests for pod in pods),
        prefill_spread=_spread(pod.prefill_tokens for pod in pods),
        pods=pods,
        steady=_steady(answered),
        generator_cpu_share=run.generator_cpu_share,
        machine_cpu_share=run.machine_cpu_share,
        curves=Curves(
            ttft=bins_of(ttft),
            inter_token=bins_of_counts(gaps, GAP_RESOLUTION_S),
            end_to_end=bins_of(whole),
            reuse=series.reuse(answered, series.step_s(run.duration_s)),
            decided=series.decided(run.samples),
            predicted_actual=square_of(_shares(told)) if _looks(run) is not False else (),
        ),
    )


def ttft_s(request: RequestResult) -> float:
    """From when it was due. Of a request with a first token."""
    return (request.first_token_s or 0.0) - request.intended_s


def _gaps(answered: Iterable[RequestResult]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for request in answered:
        counts.update(round(gap / GAP_RESOLUTION_S) for gap in request.gaps_s)
    return counts


def _shares(told: Iterable[RequestResult]) -> Iterable[tuple[float, float]]:
    for request in told:
        if request.matched_tokens is not None and request.cached_tokens is not None:
            yield (
                request.matched_tokens / request.prompt_tokens,
                request.cached_tokens / request.prompt_tokens,
            )


def _predicted(run: RunResult, told: Sequence[RequestResult]) -> float | None:
    if _looks(run) is False:
        return None
    matched = series.known_sum(request.matched_tokens for request in told)
    if told and matched is not None:
        return _ratio(matched, sum(request.prompt_tokens for request in told))
    return _ratio(
        series.increase_over(sample.matched_tokens for sample in run.samples),
        series.increase_over(sample.prompt_tokens for sample in run.samples),
    )


def _looks(run: RunResult) -> bool | None:
    """Whether the strategy looks at prompts, by the processor's own word where nobody else's."""
    if run.looks_at_prompts is not None:
        return run.looks_at_prompts
    bases = series.bases(run.samples)
    return set(bases) != {"strategy"} if bases else None


def _good(answered: Iterable[RequestResult], slo: Slo) -> int | None:
    if slo.ttft_s is None and slo.inter_token_s is None:
        return None
    return sum(_keeps(request, slo) for request in answered)


def _keeps(request: RequestResult, slo: Slo) -> bool:
    if request.first_token_s is None:
        return False
    if slo.ttft_s is not None and ttft_s(request) > slo.ttft_s:
        return False
    if slo.inter_token_s is None or not request.gaps_s:
        return True
    return math.fsum(request.gaps_s) / len(request.gaps_s) <= slo.inter_token_s


def _offered(run: RunResult) -> float | None:
    """By the time over which requests were due; None of fewer than two."""
    due = [request.intended_s for request in run.requests]
    over_s = max(due) - min(due) if due else 0.0
    return (len(due) - 1) / over_s if over_s else None


def _steady(answered: Sequence[RequestResult]) -> bool | None:
    timed = sorted((r.intended_s, ttft_s(r)) for r in answered if r.first_token_s is not None)
    third = len(timed) // 3
    if 3 * third < LEAST_FOR_STEADY:
        return None
    middle = math.fsum(ttft for _, ttft in timed[third : 2 * third]) / third
    last = math.fsum(ttft for _, ttft in timed[-third:]) / third
    return last < 2 * middle


def _spread(values: Iterable[int | None]) -> float:
    known = list(values)
    return spread([v for v in known if v is not None]) if None not in known else math.nan


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
