"""`least-request`: the candidate with the fewest open requests; the prompt plays no part."""

import random

from aibrix_extproc.routing.strategies.common import NO_LOAD, reason_or_only
from aibrix_extproc.routing.types import Candidate, Decision, Load, RouteContext, Scored
from aibrix_extproc.settings import Settings


class LeastRequest:
    """Fewest requests of the ledger first, ties at random. The score is that number."""

    name: str = "least-request"
    needs_tokens: bool = False

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._rng = rng

    def rank(self, context: RouteContext) -> Decision:
        """Reusable tokens are shown where they are known, but they do not count."""
        held = context.reusable_tokens
        order: list[tuple[int, float, int, Candidate, Load]] = []
        for candidate in context.candidates:
            load = context.loads.get(candidate.source, NO_LOAD)
            order.append((load.requests, self._rng.random(), len(order), candidate, load))
        order.sort()  # the place in the list is unique, so that a candidate is never compared
        ranking = tuple(
            Scored(candidate, held.get(candidate.source, 0), load, float(requests))
            for requests, _, _, candidate, load in order
        )
        return Decision(self.name, reason_or_only(context, "load"), ranking)
