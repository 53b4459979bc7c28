"""What each pod had to do in a run: by the answers where they name the pod, else by the engines.

Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from aibrix_extproc.loadtest.report.results import PodSample, RequestResult, RunResult
from aibrix_extproc.loadtest.report.series import increase_over, known_sum


@dataclass(frozen=True, slots=True)
class PodSummary:
    """One pod."""

    pod: str
    requests: int | None = None
    """Answered by it; None where answers do not name their pod."""
    prefill_tokens: int | None = None
    """Prompt tokens that it computed: those of its answers that were not reused, else those that
    its engine looked up and did not find, whoever asked."""
    open_mean: float | None = None
    """Requests in its engine, running and waiting, as they were read."""
    open_max: int | None = None


def pods_of(run: RunResult) -> tuple[PodSummary, ...]:
    """By name; every pod that answered or was read."""
    answered: dict[str, list[RequestResult]] = {}
    for request in run.requests:
        if request.pod is not None and request.error is None:
            answered.setdefault(request.pod, []).append(request)
    read: dict[str, list[PodSample]] = {}
    for sample in run.samples:
        for pod, one in sample.pods.items():
            read.setdefault(pod, []).append(one)
    short = {_short(name): name for name in read}
    unheard = {name for name in read if _short(name) not in map(_short, answered)}
    return tuple(
        _pod(
            pod,
            answered.get(pod, ()) if answered else None,
            read.get(pod, read.get(short.get(_short(pod), ""), [])),
        )
        for pod in sorted({*answered, *unheard})
    )


def _short(pod: str) -> str:
    """Without the namespace: headers say `namespace/name`, a list of URLs perhaps not."""
    return pod.rpartition("/")[2]


def _pod(
    pod: str, requests: Sequence[RequestResult] | None, samples: Sequence[PodSample]
) -> PodSummary:
    open_now = [one.running + one.waiting for one in samples]
    return PodSummary(
        pod,
        None if requests is None else len(requests),
        _prefill(requests, samples),
        sum(open_now) / len(open_now) if open_now else None,
        max(open_now, default=None),
    )


def _prefill(requests: Sequence[RequestResult] | None, samples: Sequence[PodSample]) -> int | None:
    if requests is not None:
        computed = known_sum(
            None if request.cached_tokens is None else request.prompt_tokens - request.cached_tokens
            for request in requests
        )
        if computed is not None:
            return computed
    queried = increase_over(one.queried_tokens for one in samples)
    found = increase_over(one.hit_tokens for one in samples)
    return None if queried is None or found is None else queried - found
