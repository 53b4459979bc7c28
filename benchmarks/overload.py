"""How well the limit of overload holds: engines on a virtual clock, more requests than they can do.

    .venv/bin/python -m benchmarks.overload [--requests 1500]

The engines are the simulator's; the ledger, the account of prefills and the limit are the server's
own. Requests go to the candidate with the fewest promised tokens; nothing is shared, so no index is
needed. The wait of a request is its time to the first token, less what its prompt alone takes. The
table is in docs/overload.md.
"""

import argparse
import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.fakes.scheduler import Request
from aibrix_extproc.routing.admission import first_in_time
from aibrix_extproc.routing.ledger import Ledger, Ticket
from aibrix_extproc.routing.pace import Pace, Work
from aibrix_extproc.routing.types import Candidate, Decision, Load, Scored
from aibrix_extproc.simulate.engine import EngineShape, VirtualEngine, request_of
from aibrix_extproc.simulate.timing import Polynomial

PODS: Final = 4
MODEL: Final = "simulated"
TIME: Final = Polynomial()
NO_LOAD: Final = Load()


@dataclass(frozen=True)
class Case:
    """What is asked of which engines; lengths in tokens, drawn evenly from a range."""

    name: str
    rates: tuple[float, ...]
    limit_s: float = 2.0
    prompt: tuple[int, int] = (4000, 8000)
    answer: tuple[int, int] = (100, 300)
    shape: EngineShape = field(default_factory=EngineShape)
    streamed: float = 1.0
    """Share of the requests whose beginning is seen."""


CASES: Final = (
    Case("prompts", (20, 28, 36, 60)),
    Case("prompts, half of them not streamed", (36,), streamed=0.5),
    Case(
        "16 requests fill the batch",
        (8, 16),
        2.0,
        (50, 200),
        (500, 1500),
        EngineShape(max_num_seqs=16),
    ),
    Case(
        "7 requests fill the cache", (4, 8), 2.0, (2000, 6000), (200, 500), EngineShape(blocks=600)
    ),
)


@dataclass
class Flight:
    """One request that was sent on."""

    arrived_s: float
    estimate_s: float
    prompt: int
    ticket: Ticket
    work: Work
    is_seen: bool
    wait_s: float = 0.0


class Run:
    """One case at one rate, with the limit or without."""

    def __init__(self, case: Case, rate: float, limit_s: float, requests: int) -> None:
        self.case, self.limit_s = case, limit_s
        self.rng = random.Random(1)
        self.engines = [VirtualEngine(case.shape, TIME) for _ in range(PODS)]
        self.pods = [
            Candidate(i, Pod("default", f"pod-{i}", "", f"10.0.0.{i}:8000", MODEL))
            for i in range(PODS)
        ]
        self.pace, self.ledger = Pace(), Ledger(600.0)
        self.flights: dict[Request, Flight] = {}
        self.answered: list[Flight] = []
        self.refused = 0
        self.due: list[float | None] = [None] * PODS
        self.numbers = itertools.count()
        self.agenda: list[tuple[float, int, int]] = []
        at = 0.0
        for _ in range(requests):
            at += self.rng.expovariate(rate)
            self._put(at, -1)

    def go(self) -> "Run":
        """Until all are answered."""
        while self.agenda:
            self.now, _, pod = heapq.heappop(self.agenda)
            if pod < 0:
                self._arrives()
            elif self.due[pod] == self.now:
                self._step_ends(pod)
        return self

    def _put(self, at: float, pod: int) -> None:
        heapq.heappush(self.agenda, (at, next(self.numbers), pod))

    def _delay_s(self, scored: Scored) -> float:
        source = scored.candidate.source
        if not self.ledger.booked.get(source, NO_LOAD).requests:
            return 0.0
        return self.pace.delay_s(source, MODEL, self.now)

    def _arrives(self) -> None:
        case, loads = self.case, self.ledger.loads(self.now)
        prompt, answer = self.rng.randint(*case.prompt), self.rng.randint(*case.answer)

        def cost(pod: Candidate) -> tuple[float, float]:
            load = loads.get(pod.source, NO_LOAD)
            return load.prefill_tokens + 64.0 * load.decoding, self.rng.random()

        ranking = tuple(
            Scored(pod, 0, loads.get(pod.source, NO_LOAD), 0.0)
            for pod in sorted(self.pods, key=cost)
        )
        found = first_in_time(Decision("", "load", ranking), self._delay_s, self.limit_s)
        if not isinstance(found, Decision):
            self.refused += 1
            return
        pod = found.chosen.candidate.source
        estimate_s = self._delay_s(found.chosen)
        is_seen = self.rng.random() < case.streamed
        request = request_of(
            [self.rng.getrandbits(31) for _ in range(prompt)],
            [1] * answer,
            [self.rng.getrandbits(60) for _ in range((prompt + answer) // case.shape.block_size)],
        )
        ticket = self.ledger.reserve(pod, prompt, self.now)
        work = self.pace.sent(pod, MODEL, prompt, self.now, is_seen=is_seen)
        self.flights[request] = Flight(self.now, estimate_s, prompt, ticket, work, is_seen)
        self.engines[pod].add(request)
        if self.engines[pod].stepping:
            self._due(pod, self.engines[pod].cut(self.now))
        else:
            self._due(pod, self.engines[pod].begin(self.now))

    def _due(self, pod: int, at: float) -> None:
        self.due[pod] = at
        self._put(at, pod)

    def _step_ends(self, pod: int) -> None:
        self.due[pod] = None
        for output in self.engines[pod].end(self.now).generated:
            flight = self.flights[output.request]
            if output.request.generated == 1:
                self._begins(flight)
            if output.request.finish is not None:
                self.pace.ended(flight.work, self.now)
                self.ledger.release(flight.ticket)
                del self.flights[output.request]
        if not self.engines[pod].idle:
            self._due(pod, self.engines[pod].begin(self.now))

    def _begins(self, flight: Flight) -> None:
        us = flight.prompt * TIME.prefill_us_per_token
        own_s = (
            TIME.prefill_ms / 1e3 + us / 1e6 + flight.prompt**2 * TIME.prefill_ns_per_square / 1e9
        )
        flight.wait_s = self.now - flight.arrived_s - own_s
        self.answered.append(flight)
        if flight.is_seen:
            self.pace.began(flight.work, self.now)
            self.ledger.prefill_done(flight.ticket, self.now)


def rank(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Print a row for each case, rate, and with and without the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1500)
    requests = parser.parse_args().requests
    print(
        "| case | rate | limit | refused | wait p50 | p90 | p99 | estimate − wait, p5 | p50 | p95 |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case, rate in [(one, rate) for one in CASES for rate in one.rates]:
        for limit_s in (float("inf"), case.limit_s):
            run = Run(case, rate, limit_s, requests).go()
            waits = [one.wait_s for one in run.answered]
            errors = [one.estimate_s - one.wait_s for one in run.answered]
            cells: list[Any] = [
                case.name,
                f"{rate:g}/s",
                "none" if limit_s == float("inf") else f"{limit_s:g} s",
                f"{run.refused / requests:.1%}",
                *(f"{rank(waits, share):.2f} s" for share in (0.5, 0.9, 0.99)),
                *(f"{rank(errors, share):+.2f} s" for share in (0.05, 0.5, 0.95)),
            ]
            print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
