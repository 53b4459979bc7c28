"""`prefix-cache-classic`: AIBrix's rule, for those who want the same choices as before."""

import random

from aibrix_extproc.routing.strategies.common import NO_LOAD, reason_or_only
from aibrix_extproc.routing.types import Decision, RouteContext, Scored
from aibrix_extproc.settings import Settings


class PrefixCacheClassic:
    """The longest match among those that are not too busy, else the least running.

    Running means the requests of the ledger. As AIBrix's gateway does it (its algorithm
    `prefix-cache` with an absolute imbalance count):

    1. Where the most and the least running differ by more than `imbalance_abs_count`, only the
       least running may be chosen, the longest match first.
    2. Else the longest match is chosen, of equal ones the least running, unless it runs more
       than the mean plus `standard_deviation_factor` standard deviations (of all candidates);
       then the next.
    3. Else, and where none matches, the least running.

    Remaining ties are decided at random. Two numbers are compared in turn, so the score of a
    candidate is its place in the ranking, from 0.
    """

    name: str = "prefix-cache-classic"
    needs_tokens: bool = True

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._imbalance_abs_count = settings.imbalance_abs_count
        self._factor_squared = settings.standard_deviation_factor**2
        self._rng = rng

    def rank(self, context: RouteContext) -> Decision:
        """All candidates; those that may not be chosen follow, the least running first."""
        held = context.reusable_tokens if context.tokens_known else {}
        loads = [context.loads.get(c.source, NO_LOAD) for c in context.candidates]
        matches = [held.get(c.source, 0) for c in context.candidates]
        running = [load.requests for load in loads]
        least = min(running)
        imbalanced = max(running) - least > self._imbalance_abs_count
        if imbalanced:
            preferred = [requests == least for requests in running]
        else:
            calm = self._within_deviation(running)
            preferred = [fits and match > 0 for fits, match in zip(calm, matches, strict=True)]

        def place(i: int) -> tuple[int, int, int, float]:
            if preferred[i]:
                return (0, -matches[i], running[i], self._rng.random())
            return (1, running[i], -matches[i], self._rng.random())

        order = sorted(range(len(running)), key=place)
        ranking = tuple(
            Scored(context.candidates[i], matches[i], loads[i], float(score))
            for score, i in enumerate(order)
        )
        reason = "imbalance" if imbalanced else "prefix" if preferred[order[0]] else "load"
        return Decision(self.name, reason_or_only(context, reason), ranking)

    def _within_deviation(self, running: list[int]) -> list[bool]:
        """Whether each count is ≤ mean + factor × population standard deviation.

        Both sides times n, then squared: whole numbers, so that a count on the very border is
        not lost to rounding (with two candidates the busier one always stands on it).
        """
        n, total = len(running), sum(running)
        spread = n * sum(requests * requests for requests in running) - total * total
        limit = self._factor_squared * spread
        return [(above := n * r - total) <= 0 or above * above <= limit for r in running]
