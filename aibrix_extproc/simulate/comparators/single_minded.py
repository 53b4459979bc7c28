"""`prefix-only` and `load-only`: each half of `prefix-cache` without the other."""

from random import Random
from typing import Final

from aibrix_extproc.routing.strategies.prefix_cache import PrefixCache
from aibrix_extproc.routing.types import Decision, RouteContext, Scored
from aibrix_extproc.settings import Settings
from aibrix_extproc.simulate.comparators.ordering import decision, ranked

_NOTHING_HELD: Final[dict[int, int]] = {}


class PrefixOnly:
    """The longest prefix, however busy the pod; ties at random."""

    name: str = "prefix-only"
    needs_tokens: bool = True

    def __init__(self, settings: Settings, rng: Random) -> None:
        self._rng = rng

    def rank(self, context: RouteContext) -> Decision:
        """Load plays no part."""
        ranking = ranked(context, lambda held, load: -held, self._rng)
        return decision(self.name, context, ranking)


class LoadOnly(PrefixCache):
    """The cost of `prefix-cache`, for a prompt of which no pod holds anything."""

    name: str = "load-only"
    needs_tokens: bool = True

    def rank(self, context: RouteContext) -> Decision:
        """What pods hold plays no part, but for what they must compute after this decision."""
        blind = RouteContext(
            context.prompt_tokens,
            False,
            context.candidates,
            _NOTHING_HELD,
            context.loads,
            computed_tokens=context.computed_tokens,
        )
        ranking = [
            Scored(
                scored.candidate,
                context.reusable_tokens.get(scored.candidate.source, 0),
                scored.load,
                scored.score,
            )
            for scored in super().rank(blind).ranking
        ]
        return decision(self.name, context, ranking)
