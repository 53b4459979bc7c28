"""`power-of-two`: of two candidates drawn at random the less busy one."""

import random

from aibrix_extproc.routing.strategies.common import NO_LOAD, reason_or_only
from aibrix_extproc.routing.types import Decision, Load, RouteContext, Scored
from aibrix_extproc.settings import Settings


class PowerOfTwo:
    """Two different candidates are drawn; the one with fewer open requests of the ledger wins.

    Nearly as even as the least loaded of all, and without what that does where several replicas
    of this server each see only their own requests: they do not all run to the same pod. (Azar et
    al., "Balanced allocations", 1994; Mitzenmacher, "The power of two choices", 1996.)

    The candidates are drawn in a random order. The loser of a pair competes with the next one
    drawn for the next place, so that an alternative, which a retry goes to, is a choice of two as
    well. Ties go to the one drawn first. The score of a candidate is its place, from 0.
    """

    name: str = "power-of-two"
    needs_tokens: bool = False

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._rng = rng

    def rank(self, context: RouteContext) -> Decision:
        """The reason is `two_choices`. Reusable tokens are shown, but they do not count."""
        drawn = list(context.candidates)
        self._rng.shuffle(drawn)
        load_of, held = context.loads.get, context.reusable_tokens
        kept = drawn[0]
        kept_load = load_of(kept.source, NO_LOAD)
        ranking: list[Scored] = []
        for candidate in drawn[1:]:
            load: Load = load_of(candidate.source, NO_LOAD)
            winner, winner_load = kept, kept_load
            if load.requests < kept_load.requests:
                winner, winner_load = candidate, load
            else:
                kept, kept_load = candidate, load
            reusable = held.get(winner.source, 0)
            ranking.append(Scored(winner, reusable, winner_load, float(len(ranking))))
        last = Scored(kept, held.get(kept.source, 0), kept_load, float(len(ranking)))
        reason = reason_or_only(context, "two_choices")
        return Decision(self.name, reason, (*ranking, last))
