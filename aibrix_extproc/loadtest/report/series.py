"""What happened when: figures of a run in equal steps of its time, and counters that were read.

Owns the cutting into steps; no request is lost, and no count of a counter. Pure.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from aibrix_extproc.loadtest.report.results import RequestResult, Sample

MOST_STEPS: Final = 60


@dataclass(frozen=True, slots=True)
class Reuse:
    """Prompt tokens of the requests that were due in one step and of which both the prompt and
    its reuse are known."""

    start_s: float
    requests: int
    prompt_tokens: int
    cached_tokens: int
    matched_tokens: int | None
    """Predicted, of those same requests; None where one does not tell."""


@dataclass(frozen=True, slots=True)
class Decided:
    """Decisions between two readings."""

    start_s: float
    end_s: float
    by_reason: Mapping[str, int]
    prompt_tokens: int | None
    matched_tokens: int | None


def step_s(duration_s: float) -> float:
    """1, 2 or 5 times a power of ten: the shortest by which a run has at most MOST_STEPS."""
    least = max(duration_s, 1e-3) / MOST_STEPS
    unit = 10.0 ** math.floor(math.log10(least))
    return next(unit * one for one in (1, 2, 5, 10, 20) if unit * one >= least * (1 - 1e-9))


def reuse(requests: Iterable[RequestResult], step: float) -> tuple[Reuse, ...]:
    """In order of time; steps without such requests are left out."""
    steps: dict[int, list[RequestResult]] = {}
    for request in requests:
        if request.prompt_tokens and request.cached_tokens is not None:
            steps.setdefault(math.floor(max(0.0, request.intended_s) / step), []).append(request)
    return tuple(_reuse(number * step, steps[number]) for number in sorted(steps))


def _reuse(start_s: float, requests: Sequence[RequestResult]) -> Reuse:
    return Reuse(
        start_s,
        len(requests),
        sum(request.prompt_tokens for request in requests),
        sum(request.cached_tokens or 0 for request in requests),
        known_sum(request.matched_tokens for request in requests),
    )


def known_sum(values: Iterable[int | None]) -> int | None:
    """None where one is not known."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def decided(samples: Sequence[Sample]) -> tuple[Decided, ...]:
    """Between each two readings; neighbours joined where there are more than MOST_STEPS."""
    single = [
        Decided(
            before.at_s,
            after.at_s,
            _increases(before.decisions_by_reason, after.decisions_by_reason),
            increase(before.prompt_tokens, after.prompt_tokens),
            increase(before.matched_tokens, after.matched_tokens),
        )
        for before, after in pairwise(samples)
    ]
    each = math.ceil(len(single) / MOST_STEPS) or 1
    return tuple(_joined(single[at : at + each]) for at in range(0, len(single), each))


def increase(before: int | None, after: int | None) -> int | None:
    """Of a counter; one that went down began anew at 0. None where a reading is missing."""
    if before is None or after is None:
        return None
    return after - before if after >= before else after


def increase_over(readings: Iterable[int | None]) -> int | None:
    """Of a counter over all of its readings; None where there are fewer than two."""
    known = [reading for reading in readings if reading is not None]
    if len(known) < 2:
        return None
    return known_sum(increase(before, after) for before, after in pairwise(known))


def bases(samples: Sequence[Sample]) -> dict[str, int]:
    """Decisions of the whole run by what they rest on."""
    totals: dict[str, int] = {}
    for before, after in pairwise(samples):
        for basis, number in _increases(
            before.decisions_by_basis, after.decisions_by_basis
        ).items():
            totals[basis] = totals.get(basis, 0) + number
    return totals


def _increases(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    found = {name: increase(before.get(name, 0), now) or 0 for name, now in after.items()}
    return {name: number for name, number in found.items() if number}


def _joined(parts: Sequence[Decided]) -> Decided:
    by_reason: dict[str, int] = {}
    for part in parts:
        for reason, number in part.by_reason.items():
            by_reason[reason] = by_reason.get(reason, 0) + number
    return Decided(
        parts[0].start_s,
        parts[-1].end_s,
        by_reason,
        known_sum(part.prompt_tokens for part in parts),
        known_sum(part.matched_tokens for part in parts),
    )
