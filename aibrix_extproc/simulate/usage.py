"""The use of virtual engines' KV caches, as the router would have asked for it.

Owns when. What a sample is, how old it may be and what counts since is the server's own.
"""

from collections.abc import Iterable

from aibrix_extproc.routing.cache_use import CacheSample, CacheUse
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.strategies.common import NO_LOAD
from aibrix_extproc.routing.types import Candidate
from aibrix_extproc.settings import Settings
from aibrix_extproc.simulate.engine import VirtualEngine


class VirtualUsage:
    """Asks every candidate's engine each `kv_usage_interval_s`; an answer takes no time."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.caches = CacheUse()
        self._interval_s = settings.kv_usage_interval_s
        self._ledger = ledger
        self._engines: dict[int, VirtualEngine] = {}
        self._due_s = 0.0

    def follow(self, source: int, engine: VirtualEngine) -> None:
        """Whom to ask about a source."""
        self._engines[source] = engine

    def tick(self, candidates: Iterable[Candidate], now: float) -> None:
        """Time has passed: ask where it is due, at the first tick after that."""
        if not self._interval_s or now < self._due_s or not self.caches.is_wanted(now):
            return
        self._due_s = now + self._interval_s
        for candidate in candidates:
            source = candidate.source
            engine, booked = self._engines[source], self._ledger.booked.get(source, NO_LOAD)
            size = engine.capacity_tokens
            self.caches.put(source, CacheSample(engine.used, now, size, booked.context_tokens))
