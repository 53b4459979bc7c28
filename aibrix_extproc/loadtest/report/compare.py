"""Two runs of one workload against each other: is one really faster, and by how much?

Requests are paired: the same turn of the same session in both. Their differences are cut into
batches of neighbours in time, since neighbours wait in the same queue; the interval is Student's,
over the batches (the method of batch means, on the ratio of two means). It speaks of this machine
and this moment: another seed, or another hour, is another test. Pure.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from aibrix_extproc.loadtest.report.results import RequestResult, RunResult

BATCHES: Final = 20
LEAST_PAIRS: Final = 5 * BATCHES
_STUDENT: Final = 2.093
"""The 97.5th percentile of Student's distribution with BATCHES - 1 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Mean TTFT of one strategy by that of another, over the requests that both answered."""

    strategy: str
    baseline: str
    pairs: int
    change: float
    """-0.41: 41 % lower than the baseline."""
    low: float | None
    """The ends of the 95 % interval; None: too few pairs for one."""
    high: float | None

    @property
    def tells(self) -> bool:
        """Whether the interval is known and leaves 0 out."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


def compare(run: RunResult, baseline: RunResult) -> Comparison | None:
    """None where no request was answered in both."""
    there = dict(_keyed(baseline.requests))
    pairs = sorted(
        (theirs.intended_s, _ttft(ours), _ttft(theirs))
        for key, ours in _keyed(run.requests)
        if (theirs := there.get(key)) is not None
    )
    total = math.fsum(theirs for _, _, theirs in pairs)
    if not total:
        return None
    ratio = math.fsum(ours for _, ours, _ in pairs) / total
    half = None
    if len(pairs) >= LEAST_PAIRS:
        half = _half_width([ours - ratio * theirs for _, ours, theirs in pairs], total / len(pairs))
    return Comparison(
        run.strategy,
        baseline.strategy,
        len(pairs),
        ratio - 1,
        None if half is None else ratio - 1 - half,
        None if half is None else ratio - 1 + half,
    )


def _keyed(requests: Iterable[RequestResult]) -> list[tuple[object, RequestResult]]:
    """Those with a first token. One without a session's name is known by when it was due."""
    return [
        ((request.session, request.turn) if request.session else request.intended_s, request)
        for request in requests
        if request.error is None and request.first_token_s is not None
    ]


def _ttft(request: RequestResult) -> float:
    assert request.first_token_s is not None  # noqa: S101 - `_keyed` leaves the others out
    return request.first_token_s - request.intended_s


def _half_width(residuals: list[float], mean: float) -> float:
    size = len(residuals) / BATCHES
    batches = [residuals[round(at * size) : round((at + 1) * size)] for at in range(BATCHES)]
    means = [math.fsum(batch) / len(batch) / mean for batch in batches]
    centre = math.fsum(means) / BATCHES
    variance = math.fsum((one - centre) ** 2 for one in means) / (BATCHES - 1)
    return _STUDENT * math.sqrt(variance / BATCHES)
