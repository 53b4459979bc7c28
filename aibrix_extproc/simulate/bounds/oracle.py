"""`oracle`: the pod where a request would itself have its first token soonest, were nothing else
to come.

It knows what no router knows: each engine's cache as it is at the moment, the step under way, the
prompts that are being computed, the queue, the lengths of all answers and the time of a step. It
does not know what will come, and does not ask what its choice costs others: greedy, so no bound in
the strict sense. `outlook` says what its look ahead leaves out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from aibrix_extproc.fakes.scheduler import Request
from aibrix_extproc.routing.types import Candidate, Decision, Load, RouteContext, Scored
from aibrix_extproc.simulate.bounds.outlook import Outlook, Reuse
from aibrix_extproc.simulate.engine import VirtualEngine

NAME: Final = "oracle"


@dataclass(slots=True)
class Truth:
    """What a simulation tells of itself before each decision."""

    engines: Sequence[VirtualEngine]
    """By the number of the pod, which is its UID."""
    now: float = 0.0
    request: Request | None = None
    """The one to be decided."""


class Oracle:
    """Greedy in the time to the first token; ties go to fewer requests, then by lot."""

    name: str = NAME
    needs_tokens: bool = False
    """It looks at the engines, not at the index."""

    def __init__(self, truth: Truth, rng: Random) -> None:
        self._truth = truth
        self._rng = rng
        self._reuses: dict[int, dict[Request, Reuse]] = {}
        """Of those that wait, by pod: as it was when they were sent."""

    def rank(self, context: RouteContext) -> Decision:
        """All candidates by the time at which the request would have its first token, in s."""
        request = self._truth.request
        if request is None:
            raise RuntimeError("the oracle was not told of the request")
        found = []
        for candidate in context.candidates:
            pod = int(candidate.pod.uid)
            engine = self._truth.engines[pod]
            at_s, reuse = self._look(pod, engine, request)
            open_requests = engine.scheduler.running + engine.scheduler.waiting
            key = (at_s, open_requests, self._rng.random())
            found.append((key, pod, candidate, reuse))
        found.sort(key=lambda one: one[0])
        _, pod, _, reuse = found[0]
        self._reuses[pod][request] = reuse
        ranking = tuple(
            self._scored(candidate, context, reuse, key[0]) for key, _, candidate, reuse in found
        )
        return Decision(self.name, "prefix", ranking)

    def _scored(
        self, candidate: Candidate, context: RouteContext, reuse: Reuse, at_s: float
    ) -> Scored:
        size = self._truth.engines[int(candidate.pod.uid)].shape.block_size
        load = context.loads.get(candidate.source, Load())
        return Scored(candidate, reuse.held * size, load, at_s)

    def _look(self, pod: int, engine: VirtualEngine, request: Request) -> tuple[float, Reuse]:
        """When, and with what of its prompt held."""
        ahead = [one for one in engine.scheduler.batch if not one.generated]
        known = self._reuses.get(pod, {})
        reuses: dict[Request, Reuse] = {}
        for waiting in engine.scheduler.queue:
            reuse = known.get(waiting)
            reuses[waiting] = reuse or reuse_of(engine, waiting, ahead)
            ahead.append(waiting)
        self._reuses[pod] = reuses
        own = reuse_of(engine, request, ahead)
        outlook = Outlook(engine, self._truth.now)
        outlook.queue([*reuses.items(), (request, own)])
        return outlook.last_first_token_s(), own


def reuse_of(engine: VirtualEngine, request: Request, ahead: Sequence[Request]) -> Reuse:
    """What the request will reuse: what is cached now, and what those ahead of it compute.

    Prompts ahead are through before it is admitted, since the budget of a step is theirs first.
    """
    sequence, size = request.sequence, engine.shape.block_size
    most = (len(sequence.tokens) - 1) // size
    soon = max((_shared(sequence.hashes, other, size, most) for other in ahead), default=0)
    cached = engine.blocks.reusable(sequence, soon)
    return Reuse(soon + len(cached), sum(block.refs == 0 for block in cached))


def _shared(hashes: Sequence[object], other: Request, size: int, most: int) -> int:
    """Leading blocks that the other's prompt has too: each hash stands for all before it."""
    theirs = other.sequence.hashes
    low, high = 0, min(most, len(other.sequence.tokens) // size)
    if not high or hashes[0] != theirs[0]:
        return 0
    low = 1
    while low < high:
        middle = (low + high + 1) // 2
        if hashes[middle - 1] == theirs[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
