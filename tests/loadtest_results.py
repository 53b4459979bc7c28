"""Load tests that nobody ran: results with known properties, made from a seed.

For the tests of the report, and for the picture of it in docs/.
"""

import math
import random
from array import array
from collections import Counter
from dataclasses import dataclass
from functools import cache

from aibrix_extproc.loadtest.report.results import (
    Environment,
    LoadTest,
    NullRun,
    PodSample,
    RequestResult,
    RunResult,
    Sample,
    Slo,
)

STRATEGIES = ("least-request", "power-of-two", "prefix-cache")
_SHARE = {"prefix-cache": 0.72, "session-affinity": 0.6, "power-of-two": 0.3}
READ_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the made-up run is."""

    requests: int = 1500
    pods: int = 4
    rate: float = 25.0
    gaps: int = 12
    failing: float = 0.0


def a_test(
    strategies: tuple[str, ...] = STRATEGIES, shape: Shape = Shape(), seed: int = 1
) -> LoadTest:
    """Every strategy under the same requests."""
    return LoadTest(
        model="llama-3-8b",
        workload="shared-prefix",
        target=f"own stack, {shape.pods} pods",
        seed=seed,
        started_unix_s=1_790_000_000.0,
        environment=Environment("0.1.0", "3.11.7", 2, "Linux x86_64"),
        runs=[a_run(strategy, shape, seed) for strategy in strategies],
        options={"groups": 150, "prompts per group": 5, "rate": shape.rate, "null run": True},
        slo=Slo(ttft_s=0.5, inter_token_s=0.05),
        null_run=NullRun(requests=2400, duration_s=2.0, chunks=8),
    )


@cache
def a_run(strategy: str, shape: Shape = Shape(), seed: int = 1) -> RunResult:
    """One strategy: TTFT follows from what is not reused."""
    when = random.Random(f"when {seed}")
    chance = random.Random(f"{strategy} {seed}")
    due_s, requests = 0.0, []
    for number in range(shape.requests):
        due_s += when.expovariate(shape.rate)
        requests.append(_request(strategy, number, due_s, shape, when, chance))
    duration_s = max(request.ended_s for request in requests)
    return RunResult(
        strategy,
        requests,
        duration_s,
        samples=samples(strategy, requests, duration_s),
        generator_cpu_share=0.31,
        machine_cpu_share=0.74,
    )


def _request(
    strategy: str,
    number: int,
    due_s: float,
    shape: Shape,
    when: random.Random,
    chance: random.Random,
) -> RequestResult:
    prompt = when.choice((1200, 3600, 7200))
    warm = 1 - math.exp(-number / (0.2 * shape.requests))
    share = _SHARE.get(strategy, 0.25) * warm
    cached = 16 * int(prompt * min(0.95, max(0.0, chance.gauss(share, 0.18))) / 16)
    matched = cached if chance.random() < 0.93 else 16 * int(prompt * chance.random() * 0.9 / 16)
    sent_s = due_s + abs(chance.gauss(0, 0.0004))
    first_s = sent_s + 0.02 + (prompt - cached) * 6e-5 * chance.lognormvariate(0, 0.5)
    gaps = array("d", (chance.lognormvariate(-4.2, 0.3) for _ in range(shape.gaps)))
    failed = chance.random() < shape.failing
    pod = min(int(chance.random() ** 1.3 * shape.pods), shape.pods - 1) + 1
    return RequestResult(
        session=f"s{number // 3}",
        turn=number % 3,
        intended_s=due_s,
        sent_s=sent_s,
        ended_s=first_s + sum(gaps),
        first_token_s=None if failed else first_s,
        gaps_s=() if failed else gaps,
        error="HTTP 503" if failed else None,
        prompt_tokens=0 if failed else prompt,
        cached_tokens=None if failed else cached,
        answer_tokens=0 if failed else shape.gaps + 1,
        pod=None if failed else f"default/vllm-{pod}",
        matched_tokens=(matched if strategy == "prefix-cache" else 0) if not failed else None,
    )


def samples(strategy: str, requests: list[RequestResult], duration_s: float) -> list[Sample]:
    """What /metrics would have said: counters that another test had moved before."""
    made = []
    moments = [*(READ_EVERY_S * n for n in range(int(duration_s / READ_EVERY_S) + 1)), duration_s]
    for at_s in moments:
        past = [request for request in requests if request.sent_s <= at_s and request.error is None]
        reasons = Counter(_reason(strategy, request) for request in past)
        now = Counter(request.pod or "" for request in past if request.ended_s > at_s)
        made.append(
            Sample(
                at_s,
                decisions_by_reason={"prefix_match": 1000, **_plus(reasons, 1000)},
                decisions_by_basis={
                    ("prefix" if strategy == "prefix-cache" else "strategy"): 1000 + len(past)
                },
                prompt_tokens=50_000 + sum(request.prompt_tokens for request in past),
                matched_tokens=20_000 + sum(request.matched_tokens or 0 for request in past),
                pods={
                    pod: PodSample(running=now[pod])
                    for pod in sorted({request.pod or "" for request in requests} - {""})
                },
            )
        )
    return made


def _plus(counts: Counter[str], before: int) -> dict[str, int]:
    return {
        name: number + (before if name == "prefix_match" else 0) for name, number in counts.items()
    }


def _reason(strategy: str, request: RequestResult) -> str:
    if strategy == "power-of-two":
        return "two_choices"
    if strategy != "prefix-cache":
        return "least_request_fallback"
    if request.matched_tokens:
        return "prefix_match"
    return "prefix_match_skipped" if request.turn else "least_request_fallback"
