"""Decisions for which a strategy lacked what it goes by: counted, and told when that begins.

Owns the reasons of that metric. What a strategy does then, and how it says so, is its own.
"""

import logging
from enum import StrEnum
from typing import Final

from aibrix_extproc.decide.plan import MAX_SESSION_BYTES, Plan
from aibrix_extproc.logs import Spells
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.types import Decision


class Shortfall(StrEnum):
    """Labels of a metric."""

    NO_SESSION = "no_session"
    """The request names none."""
    SESSION_TOO_LONG = "session_too_long"
    """It names one that does not count."""
    KV_CACHE_UNKNOWN = "kv_cache_unknown"
    """No engine told how full its cache is."""
    KV_CACHE_PARTLY = "kv_cache_partly"
    """Not all did."""


_TOLD: Final = {
    Shortfall.NO_SESSION: (
        "requests without a session are routed by load",
        "session-affinity reads the header x-session-id, where clients' headers are trusted",
    ),
    Shortfall.SESSION_TOO_LONG: (
        "requests with too long a session are routed by load",
        f"x-session-id counts up to {MAX_SESSION_BYTES} bytes",
    ),
    Shortfall.KV_CACHE_UNKNOWN: (
        "least-kv-cache does not know how full any KV cache is, and goes by load",
        "usual for the first request; else see AIBRIX_EXTPROC_KV_USAGE_INTERVAL, and whether the "
        "engines' /metrics can be read",
    ),
    Shortfall.KV_CACHE_PARTLY: (
        "least-kv-cache does not know how full some KV caches are, and goes by load there",
        "usual for a pod that has just come; else its engine's /metrics cannot be read",
    ),
}


class Shortfalls:
    """Counts them."""

    def __init__(self, metrics: Metrics) -> None:
        self._counts = metrics.children(metrics.strategy_fallbacks)
        self._spells = Spells(logging.getLogger(__name__))

    def seen(self, plan: Plan, decision: Decision) -> None:
        """A decision was made."""
        found = self._of(plan, decision)
        if found is not None:
            self._counts.of(decision.strategy, found).inc()
            is_a_clients = found in (Shortfall.NO_SESSION, Shortfall.SESSION_TOO_LONG)
            level = logging.INFO if is_a_clients else logging.WARNING
            self._spells.seen(*_TOLD[found], level)

    @staticmethod
    def _of(plan: Plan, decision: Decision) -> Shortfall | None:
        if decision.reason == "no_session" and plan.session_ignored:
            return Shortfall.SESSION_TOO_LONG
        return _BY_REASON.get(decision.reason)


_BY_REASON: Final = {str(one): one for one in Shortfall}
