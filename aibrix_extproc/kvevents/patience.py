"""What is due with time for one source: how long silence, and unanswered questions, are borne.

Owns every limit of time but the settings. Decides and changes nothing: `source` carries it out.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from aibrix_extproc.kvevents.asking import Asking
from aibrix_extproc.kvevents.belief import IN_SYNC, Belief
from aibrix_extproc.kvevents.contact import Contact
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.waiting import Waiting

_ASK_ANEW_S: Final = 1.0
"""A publishing engine answers within 0.1 s: vLLM serves replays between two publishes."""
_ANSWER_S: Final = 0.4
"""So long even the last question may take."""
_GIVE_UP_S: Final = 2.2
"""So long a live batch waits for an answer, and what may be wrong is still believed."""
_UNASKABLE_EXACT_S: Final = 2.0
"""Silence after which nobody can say that an engine's last batch was not lost."""


@dataclass(frozen=True, slots=True)
class SyncLimits:
    """Bounds of one source; the settings `kv_queue_bytes` and so on have their meaning."""

    queue_bytes: int
    idle_probe_s: float
    stale_after_s: float
    lost_after_s: float


class Due(Enum):
    """What is to be done now; of several, the first."""

    LOST_AWAY = auto()
    """No connection for `lost_after_s`."""
    LOST_SILENT = auto()
    """A connection that has been silent for `lost_after_s` after it became stale."""
    STALE = auto()
    """Silent for `stale_after_s`."""
    UNASKABLE = auto()
    """A silence in which a batch may have been lost, and nobody to ask: EXACT no more."""
    GIVE_UP = auto()
    """A live batch has waited long enough for the answer."""
    DOUBT = auto()
    """The same, but the question itself still waits for its turn."""
    ASK_ANEW = auto()
    """A live batch waits: the question may have been lost."""
    CHECK = auto()
    """Ask whether the last batch was sent as it was read."""
    REFILL = auto()
    """Ask from 0, since older batches may be had."""
    PROBE = auto()
    """Ask what follows the last number: a tail may be lost."""


class Patience:
    """The limits of one source."""

    def __init__(self, limits: SyncLimits) -> None:
        self._limits = limits
        self._probe_s = min(limits.idle_probe_s, limits.stale_after_s / 2)

    def due(
        self, belief: Belief, contact: Contact, asking: Asking, waiting: Waiting, now: float
    ) -> Due | None:
        """What is to be done for a source in any state but LOST."""
        silent_s = now - contact.heard_at
        if not contact.stands:
            if now - contact.changed_at >= self._limits.lost_after_s:
                return Due.LOST_AWAY
            return self._stale(belief, silent_s)
        if silent_s >= self._limits.stale_after_s + self._limits.lost_after_s:
            return Due.LOST_SILENT
        if (stale := self._stale(belief, silent_s)) is not None:
            return stale
        if (
            belief.state is SourceState.EXACT
            and not asking.possible
            and silent_s >= _UNASKABLE_EXACT_S
        ):
            return Due.UNASKABLE
        if asking.question is not None:
            return self._impatient(asking, waiting, now)
        if belief.state in IN_SYNC and asking.possible:
            return self._ask(belief, contact, asking, now)
        return None

    def may_probe(self, contact: Contact, asking: Asking, now: float) -> bool:
        """Whether the silence has become too long not to ask."""
        silent_s = now - max(contact.heard_at, asking.asked_at)
        return asking.possible and silent_s >= contact.patience_s(self._probe_s)

    def _stale(self, belief: Belief, silent_s: float) -> Due | None:
        return Due.STALE if silent_s >= self._limits.stale_after_s and not belief.stale else None

    def _impatient(self, asking: Asking, waiting: Waiting, now: float) -> Due | None:
        question = asking.question
        if question is None or waiting.since is None:
            return None
        waits_s = now - waiting.since
        if question.heard_at is None:
            return Due.DOUBT if waits_s >= _GIVE_UP_S else None
        silent_s = now - question.heard_at
        if waits_s >= _GIVE_UP_S and silent_s >= _ANSWER_S and not question.answered:
            return Due.GIVE_UP
        return Due.ASK_ANEW if min(silent_s, waits_s) >= _ASK_ANEW_S else None

    def _ask(self, belief: Belief, contact: Contact, asking: Asking, now: float) -> Due | None:
        if asking.check_wanted is not None:
            return Due.CHECK
        older_wanted = asking.older_wanted and not belief.complete
        alive = contact.live_at is not None and contact.live_at >= asking.ended_at
        pause_s = self._probe_s if asking.refill_slowly else _ASK_ANEW_S
        if older_wanted and alive and now - asking.ended_at >= pause_s:
            return Due.REFILL
        if self.may_probe(contact, asking, now):
            return Due.REFILL if older_wanted else Due.PROBE
        return None
