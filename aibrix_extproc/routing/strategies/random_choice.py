"""`random`: any candidate, each as likely as the others; what the others are measured against."""

import random

from aibrix_extproc.routing.strategies.common import NO_LOAD, reason_or_only
from aibrix_extproc.routing.types import Decision, RouteContext, Scored
from aibrix_extproc.settings import Settings


class RandomChoice:
    """All candidates in a random order, each with the score 0."""

    name: str = "random"
    needs_tokens: bool = False

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._rng = rng

    def rank(self, context: RouteContext) -> Decision:
        """Reusable tokens and load are shown, but they do not count."""
        candidates = list(context.candidates)
        self._rng.shuffle(candidates)
        ranking = tuple(
            Scored(
                candidate,
                context.reusable_tokens.get(candidate.source, 0),
                context.loads.get(candidate.source, NO_LOAD),
                0.0,
            )
            for candidate in candidates
        )
        return Decision(self.name, reason_or_only(context, "random"), ranking)
