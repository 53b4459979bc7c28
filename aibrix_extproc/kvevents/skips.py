"""What of one source could not be used: counted by reason, and told when it begins.

Owns which reasons are usual, and which spoilt bytes would have as well. Knows no state.
"""

import logging
from collections.abc import Mapping
from typing import Final

from aibrix_extproc.index.results import (
    CONFLICT,
    GROUP_NOT_INDEXED,
    MISFIT,
    PAYLOAD,
    SKIP_REASONS,
    UNKNOWN_EVENT,
    UNREADABLE_CLEARED,
    UNREADABLE_EVENT,
    UNREADABLE_REMOVED,
    UNREADABLE_STORED,
)
from aibrix_extproc.kvevents.wire import BadFrame
from aibrix_extproc.logs import Spells
from aibrix_extproc.metrics import Metrics

UNREADABLE: Final = frozenset(
    {PAYLOAD, UNREADABLE_EVENT, UNREADABLE_STORED, UNREADABLE_REMOVED, UNREADABLE_CLEARED}
    | {UNKNOWN_EVENT, MISFIT, CONFLICT}
)
"""Reasons that bytes spoilt on the way would have as well."""

_USUAL: Final = (GROUP_NOT_INDEXED, MISFIT)


class Skips:
    """Of one source, named as in its other log lines."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._name = name
        self._metrics = metrics
        self._spells = Spells(logging.getLogger(__name__))

    def events(self, skipped: Mapping[str, int]) -> None:
        """Events (blocks, for some reasons) of a batch that were not used, by reason."""
        for reason, events in skipped.items():
            self._metrics.skipped_events.labels(reason).inc(events)
            level = logging.INFO if reason in _USUAL else logging.WARNING
            thing = f"{self._name}: events are skipped ({reason})"
            self._spells.seen(thing, SKIP_REASONS.get(reason, ""), level, events)

    def message(self, reason: BadFrame) -> None:
        """A message that is no batch."""
        self._metrics.bad_frames.labels(reason).inc()
        self._spells.seen(
            f"{self._name}: messages that are no batch are dropped ({reason})",
            "something else than an engine publishes on that port?",
        )
