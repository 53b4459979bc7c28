"""`prefix-cache`, the default: the candidate that finishes the prompt first."""

import random

from aibrix_extproc.routing.strategies.common import NO_LOAD, reason_or_only
from aibrix_extproc.routing.types import Candidate, Decision, Load, RouteContext, Scored
from aibrix_extproc.settings import Settings


class PrefixCache:
    """Lowest cost first; ties to the fewest requests, then at random.

    The cost, in prompt tokens: what the candidate must compute of this prompt, what it was
    promised before and has not yet computed, a weight for each request that it decodes, and one
    for each token of its open requests' prompts, which decoding reads again at each step.
    Where the tokens are not known nothing counts as held, and load decides.
    """

    name: str = "prefix-cache"
    needs_tokens: bool = True

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._decode_weight_tokens = settings.decode_weight_tokens
        self._context_weight = settings.context_weight
        self._rng = rng

    def rank(self, context: RouteContext) -> Decision:
        """The reason is `prefix` where the chosen one holds more of the prompt than another."""
        held = context.reusable_tokens if context.tokens_known else {}
        order: list[tuple[float, int, float, int, Candidate, int, Load]] = []
        fewest = length = context.prompt_tokens
        load_of, likely_tokens = context.loads.get, context.likely_tokens
        computed_of = context.computed_tokens.get
        decode_weight, context_weight = self._decode_weight_tokens, self._context_weight
        draw = self._rng.random
        for place, candidate in enumerate(context.candidates):
            source = candidate.source
            load = load_of(source, NO_LOAD)
            reusable = held.get(source, 0)
            fewest = reusable if reusable < fewest else fewest
            missing = length - reusable
            if likely_tokens:
                missing -= likely_tokens.get(source, 0)
            cost = (
                load.prefill_tokens
                - computed_of(source, 0.0)
                + decode_weight * load.decoding
                + context_weight * load.context_tokens
                + (missing if missing > 0 else 0)
            )
            order.append((cost, load.requests, draw(), place, candidate, reusable, load))
        order.sort()  # the place is unique, so that a candidate is never compared
        ranking = tuple(
            [
                Scored(candidate, reusable, load, float(cost))
                for cost, _, _, _, candidate, reusable, load in order
            ]
        )
        reason = "prefix" if ranking[0].reusable_tokens > fewest else "load"
        return Decision(self.name, reason_or_only(context, reason), ranking)
