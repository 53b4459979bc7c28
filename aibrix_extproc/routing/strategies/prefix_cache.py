"""`prefix-cache`, the default: the candidate that finishes the prompt first."""

import random

from aibrix_extproc.routing.strategies.common import NO_LOAD, reason_or_only
from aibrix_extproc.routing.types import Candidate, Decision, Load, RouteContext, Scored
from aibrix_extproc.settings import Settings

_Entry = tuple[float, int, float, int, Candidate, int, Load]
"""Cost, open requests, a lot, place, candidate, tokens that it holds, load."""


class PrefixCache:
    """Lowest cost first; ties to the fewest requests, then at random.

    The cost, in prompt tokens: what the candidate must compute of this prompt, what it was
    promised before and has not yet computed, a weight for each request that it decodes, and one
    for each token by which it is crowded: decoding reads the contexts of all open requests again at
    each step, so a pod that has far more of them than the others makes all of them slow.
    Where the tokens are not known nothing counts as held, and load decides.

    The weights were chosen by measurement (docs/routing.md).
    """

    name: str = "prefix-cache"
    needs_tokens: bool = True

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._decode_weight_tokens = settings.decode_weight_tokens
        self._crowding_from = settings.crowding_from
        self._crowding_weight = settings.crowding_weight
        self._rng = rng

    def rank(self, context: RouteContext) -> Decision:
        """The reason is `prefix` where the chosen one holds more of the prompt than another."""
        held = context.reusable_tokens if context.tokens_known else {}
        order: list[_Entry] = []
        fewest = length = context.prompt_tokens
        load_of, likely_tokens = context.loads.get, context.likely_tokens
        computed_of = context.computed_tokens.get
        weight, draw = self._decode_weight_tokens, self._rng.random
        context_tokens = most = 0
        for place, candidate in enumerate(context.candidates):
            source = candidate.source
            load = load_of(source, NO_LOAD)
            reusable = held.get(source, 0)
            fewest = reusable if reusable < fewest else fewest
            missing = length - reusable
            if likely_tokens:
                missing -= likely_tokens.get(source, 0)
            cost = load.prefill_tokens + weight * load.decoding + (missing if missing > 0 else 0)
            if load.prefill_tokens:
                cost -= computed_of(source, 0.0)
            own = load.context_tokens
            context_tokens += own
            most = own if own > most else most
            order.append((cost, load.requests, draw(), place, candidate, reusable, load))
        crowded = self._crowding_from * context_tokens / len(order)
        if most > crowded:
            order = [self._charged(entry, crowded) for entry in order]
        order.sort()  # the place is unique, so that a candidate is never compared
        ranking = tuple(
            [
                Scored(candidate, reusable, load, float(cost))
                for cost, _, _, _, candidate, reusable, load in order
            ]
        )
        reason = "prefix" if ranking[0].reusable_tokens > fewest else "load"
        return Decision(self.name, reason_or_only(context, reason), ranking)

    def _charged(self, entry: _Entry, crowded: float) -> _Entry:
        """With the price of the context tokens above `crowded`."""
        over = entry[6].context_tokens - crowded
        if over <= 0:
            return entry
        return (entry[0] + self._crowding_weight * over, *entry[1:])
