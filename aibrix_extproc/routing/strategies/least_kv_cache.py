"""`least-kv-cache`: the candidate whose KV cache is least used, by its engine's own word."""

import random
import statistics
from typing import Final

from aibrix_extproc.routing.cache_use import CacheSample
from aibrix_extproc.routing.strategies.common import NO_LOAD, reason_or_only
from aibrix_extproc.routing.strategies.least_request import LeastRequest
from aibrix_extproc.routing.types import Candidate, Decision, Load, RouteContext, Scored
from aibrix_extproc.settings import Settings

ASSUMED_CACHE_TOKENS: Final = 131_072
"""Of an engine that does not say how large its cache is, beside others that do not either."""


class LeastKvCache:
    """The lowest estimate first; ties to the fewest requests, then at random.

    The estimate is what the engine said last, plus what the ledger's open requests have grown by
    since, in tokens of the cache: so that many requests between two questions do not all go to
    the same pod, and what has ended counts no more. A sample older than the limit is not used:
    the estimate is then the ledger's open requests alone, as a share of a cache of that size. The
    size is the engine's own, else the median of the others'.

    Where no candidate has a sample that may be used, the ranking is that of `least-request`. The
    score is the estimate, a share of the cache; there it is the number of requests.
    """

    name: str = "least-kv-cache"
    needs_tokens: bool = False

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._max_age_s = settings.kv_usage_max_age_s
        self._rng = rng
        self._without = LeastRequest(settings, rng)

    def rank(self, context: RouteContext) -> Decision:
        """`kv_cache`: all are known; `kv_cache_partly`: some; `kv_cache_unknown`: none is."""
        samples = [context.caches.get(one.source) for one in context.candidates]
        fresh = [
            sample is not None and context.now_s - sample.at_s <= self._max_age_s
            for sample in samples
        ]
        if not any(fresh):
            ranking = self._without.rank(context).ranking
            return Decision(self.name, reason_or_only(context, "kv_cache_unknown"), ranking)
        usual = _usual_size(samples)
        order: list[tuple[float, int, float, int, Candidate, Load]] = []
        for place, candidate in enumerate(context.candidates):
            load = context.loads.get(candidate.source, NO_LOAD)
            used = _estimate(samples[place], fresh[place], load, usual)
            order.append((used, load.requests, self._rng.random(), place, candidate, load))
        order.sort()  # the place is unique, so that a candidate is never compared
        held = context.reusable_tokens
        ranking = tuple(
            Scored(candidate, held.get(candidate.source, 0), load, used)
            for used, _, _, _, candidate, load in order
        )
        reason = "kv_cache" if all(fresh) else "kv_cache_partly"
        return Decision(self.name, reason_or_only(context, reason), ranking)


def _usual_size(samples: list[CacheSample | None]) -> float:
    known = [sample.size_tokens for sample in samples if sample and sample.size_tokens]
    return statistics.median(known) if known else ASSUMED_CACHE_TOKENS


def _estimate(sample: CacheSample | None, is_fresh: bool, load: Load, usual_size: float) -> float:
    size = sample.size_tokens if sample and sample.size_tokens else usual_size
    if sample is None or not is_fresh:
        return load.context_tokens / size
    return max(0.0, sample.used + (load.context_tokens - sample.context_tokens) / size)
