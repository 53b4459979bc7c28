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


_TOLD: Final = {
    Shortfall.NO_SESSION: (
        "requests without a session are routed by load",
        "session-affinity reads the header x-session-id, where clients' headers are trusted",
    ),
    Shortfall.SESSION_TOO_LONG: (
        "requests with too long a session are routed by load",
        f"x-session-id counts up to {MAX_SESSION_BYTES} bytes",
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
            self._spells.seen(*_TOLD[found], logging.INFO)

    @staticmethod
    def _of(plan: Plan, decision: Decision) -> Shortfall | None:
        if decision.reason == "no_session":
            ignored = plan.session_ignored
            return Shortfall.SESSION_TOO_LONG if ignored else Shortfall.NO_SESSION
        return None
