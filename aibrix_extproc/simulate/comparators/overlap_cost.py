"""`overlap-cost-…`: the rule of NVIDIA Dynamo's KV router, in its words.

Its documentation (Router Design, 1.x): the cost of a worker is the blocks that it would have to
prefill, those promised before included, plus the blocks that would be active on it while it
decodes; the lowest cost wins, or, above temperature 0, a draw by softmax over costs scaled to their
range. A credit above 1 counts each block of overlap more than once.
"""

import math
from random import Random
from typing import Final

from aibrix_extproc.routing.types import Decision, RouteContext, Scored
from aibrix_extproc.settings import Settings
from aibrix_extproc.simulate.comparators.ordering import decision, ranked

_SOFT_TEMPERATURE: Final = 0.5


class OverlapCost:
    """Tokens in place of blocks; the size of a block divides both halves and changes no order."""

    name: str = "overlap-cost-1"
    needs_tokens: bool = True
    credit: float = 1.0
    temperature: float = 0.0

    def __init__(self, settings: Settings, rng: Random) -> None:
        self._rng = rng

    def rank(self, context: RouteContext) -> Decision:
        """The lowest cost first; the rest in order of cost behind one that was drawn."""
        length = context.prompt_tokens
        ranking = ranked(
            context,
            lambda held, load: (
                load.prefill_tokens + length - self.credit * held + load.context_tokens + length
            ),
            self._rng,
        )
        if self.temperature:
            ranking.insert(0, ranking.pop(self._drawn(ranking)))
        return decision(self.name, context, ranking)

    def _drawn(self, ranking: list[Scored]) -> int:
        low, high = ranking[0].score, ranking[-1].score
        if high <= low:
            return 0
        weights = [
            math.exp((low - scored.score) / (high - low) / self.temperature) for scored in ranking
        ]
        return self._rng.choices(range(len(ranking)), weights)[0]


class OverlapCostTwice(OverlapCost):
    """Each token of overlap counts twice."""

    name: str = "overlap-cost-2"
    credit: float = 2.0


class OverlapCostSoft(OverlapCost):
    """A draw, so that several routers do not all choose the same worker."""

    name: str = "overlap-cost-soft"
    temperature: float = _SOFT_TEMPERATURE
