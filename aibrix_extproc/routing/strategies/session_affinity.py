"""`session-affinity`: all requests of a session to the same candidate, while that can take them."""

import math
import random
from collections.abc import Mapping, Sequence

from aibrix_extproc.routing.rendezvous import Rendezvous
from aibrix_extproc.routing.strategies.common import NO_LOAD, reason_or_only
from aibrix_extproc.routing.strategies.least_request import LeastRequest
from aibrix_extproc.routing.types import Candidate, Decision, Load, RouteContext, Scored
from aibrix_extproc.settings import Settings


class SessionAffinity:
    """The session's own candidate by rendezvous hashing, with a bound on its load.

    A candidate is full where one more request would be more than the factor times the mean of all
    (rounded up, that request counted), and more than the floor. A session whose own is full goes
    to the next one in its order that is not, and comes back when it is again. (Consistent hashing
    with bounded loads: Mirrokni, Thorup and Zadimoghaddam, 2016.) With a factor of at least 1 some
    candidate always has room.

    The order is the same in every replica, so a retry goes to the same second candidate; which
    ones are full each replica knows by its own ledger. The score is the place in the ranking,
    from 0: candidates with room in the session's order, then the full ones in that order.

    A request that names no session is ranked as by `least-request`.
    """

    name: str = "session-affinity"
    needs_tokens: bool = False

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._factor = settings.session_load_factor
        self._floor = settings.session_load_floor
        self._order = Rendezvous().order
        self._without = LeastRequest(settings, rng)

    def rank(self, context: RouteContext) -> Decision:
        """`session`: to its own; `session_full`: its own is full; `no_session`: names none."""
        if context.session is None:
            ranking = self._without.rank(context).ranking
            return Decision(self.name, reason_or_only(context, "no_session"), ranking)
        order = self._order(context.session, context.candidates)
        own = order[0]
        if self._factor:
            order = self._full_last(order, context.loads)
        reason = "session" if order[0] is own else "session_full"
        held, load_of = context.reusable_tokens, context.loads.get
        ranking = tuple(
            Scored(one, held.get(one.source, 0), load_of(one.source, NO_LOAD), float(place))
            for place, one in enumerate(order)
        )
        return Decision(self.name, reason_or_only(context, reason), ranking)

    def _full_last(self, order: Sequence[Candidate], loads: Mapping[int, Load]) -> list[Candidate]:
        requests = [loads.get(candidate.source, NO_LOAD).requests for candidate in order]
        bound = max(self._floor, math.ceil(self._factor * (sum(requests) + 1) / len(order)))
        free: list[Candidate] = []
        full: list[Candidate] = []
        for candidate, open_requests in zip(order, requests, strict=True):
            (free if open_requests < bound else full).append(candidate)
        return free + full
