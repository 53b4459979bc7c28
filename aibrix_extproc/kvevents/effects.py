"""What the state machine of a source asks its driver to do: frozen data, in order.

Knows nothing of how they are carried out.
"""

from dataclasses import dataclass
from enum import StrEnum


class SourceState(StrEnum):
    """How far a source's part of the index can be believed; the package has the transitions."""

    CONNECTING = "CONNECTING"
    SYNCING = "SYNCING"
    EXACT = "EXACT"
    PARTIAL = "PARTIAL"
    LOST = "LOST"


class ClearReason(StrEnum):
    """Why a source is emptied: the labels of `aibrix_kv_source_clears_total`."""

    GAP = "gap"
    """Batches are missing that no replay can bring, a burnt number included."""
    RESTART = "restart"
    """Another engine process answers or publishes."""
    UNPROVEN = "unproven"
    """A new connection, and nothing shows that the same engine process is behind it."""
    LOSSY = "lossy"
    """A batch held a removal, a clear or a whole payload that could not be read."""
    ERROR = "error"
    """This process failed while it handled a batch, which counts as lossy."""
    OVERFLOW = "overflow"
    """More live batches waited for a replay than AIBRIX_KV_QUEUE_BYTES allows."""
    LOST = "lost"
    """No contact for AIBRIX_KV_LOST_AFTER."""
    STALE = "stale"
    """Silent for AIBRIX_KV_STALE_AFTER, and there is no replay port that could be asked."""
    REFILL = "refill"
    """Older batches can be had after all: the source is built up anew from them."""
    INFLATED = "inflated"
    """It holds more blocks than its engine has."""
    OPERATOR = "operator"
    """A lever: the source is to be synced anew, or event sync was switched off."""


class Notice(StrEnum):
    """What happened and is only counted."""

    GAP = "gap"
    RESTART = "restart"
    REPLAY_COMPLETE = "complete"
    REPLAY_PARTIAL = "partial"
    REPLAY_FAILED = "failed"
    NO_REPLAY_PORT = "none"


@dataclass(frozen=True, slots=True)
class Apply:
    """Give the payload to the index, then call `SourceSync.applied`. The last of its effects.

    `live`: it has just arrived from PUB and did not wait, so its age is the stream's lag.
    """

    sequence: int
    payload: bytes
    live: bool


@dataclass(frozen=True, slots=True)
class Clear:
    """Empty the source: placements, orphans, predictions."""

    reason: ClearReason


@dataclass(frozen=True, slots=True)
class AskReplay:
    """Ask for every batch with sequence ≥ `start`; the answers carry the number `ask`."""

    ask: int
    start: int


@dataclass(frozen=True, slots=True)
class CancelReplay:
    """The answers to `ask` are of no use any more."""

    ask: int


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Replace the subscription by a new connection, and say `connected` when it stands."""


@dataclass(frozen=True, slots=True)
class Noticed:
    """Count it."""

    what: Notice


@dataclass(frozen=True, slots=True)
class StaleChanged:
    """Show it, and log it: the source has been silent for `silent_s`, or is heard again."""

    stale: bool
    silent_s: float


@dataclass(frozen=True, slots=True)
class StateChanged:
    """Log it."""

    before: SourceState
    after: SourceState
    why: str


Effect = (
    Apply | Clear | AskReplay | CancelReplay | Reconnect | Noticed | StaleChanged | StateChanged
)
Effects = tuple[Effect, ...]
