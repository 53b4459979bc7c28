"""What the index tells of itself: frozen data, the same from every back end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PAYLOAD: Final = "payload"
UNREADABLE_EVENT: Final = "unreadable_event"
UNREADABLE_STORED: Final = "unreadable_stored"
UNREADABLE_REMOVED: Final = "unreadable_removed"
UNREADABLE_CLEARED: Final = "unreadable_cleared"
UNKNOWN_EVENT: Final = "unknown_event"
MISFIT: Final = "misfit"
GROUP_NOT_INDEXED: Final = "group_not_indexed"
UNNAMED_ADAPTER: Final = "unnamed_adapter"
CONFLICT: Final = "conflict"
ORPHAN_DROPPED: Final = "orphan_dropped"
FULL: Final = "full"

SKIP_REASONS: Final[Mapping[str, str]] = {
    PAYLOAD: "a whole payload is no batch of events (a loss)",
    UNREADABLE_EVENT: "an event whose kind cannot be read (a loss: it may be a removal)",
    UNREADABLE_STORED: "a BlockStored with a field missing or of a wrong type",
    UNREADABLE_REMOVED: "a BlockRemoved with a field missing or of a wrong type (a loss)",
    UNREADABLE_CLEARED: "an AllBlocksCleared that is no array or map of names (a loss)",
    UNKNOWN_EVENT: "a kind of event that is not known",
    MISFIT: "a BlockStored whose tokens are not exactly those of its blocks",
    GROUP_NOT_INDEXED: "a BlockStored of a cache group that is not indexed",
    UNNAMED_ADAPTER: "a BlockStored of an adapter's id without a name: indexed, matches nothing",
    CONFLICT: "a BlockStored that names other content for a hash; neither is believed",
    ORPHAN_DROPPED: "parked blocks (blocks, not events) that went because too many are parked",
    FULL: "a BlockStored of which blocks were not taken because the index is full",
}
"""The closed list of reasons, and what each counts; events unless it says otherwise."""

LOSSES: Final = frozenset({PAYLOAD, UNREADABLE_EVENT, UNREADABLE_REMOVED, UNREADABLE_CLEARED})
"""Reasons after which the source may hold less than the index says."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What one payload did."""

    stored: int
    """Blocks placed: new ones, further copies, orphans that were joined."""
    removed: int
    """Copies taken away, placed or parked."""
    cleared: int
    """AllBlocksCleared events."""
    parked: int
    """Blocks that became orphans."""
    skipped: Mapping[str, int]
    """Reason (of SKIP_REASONS) → how often. Empty where everything was used."""
    lossy: bool
    """A removal, a clear or the whole payload could not be read: treat it as a gap."""
    timestamp: float | None
    """The batch's own time, seconds since the epoch; None where it has no finite one."""
    events: int
    """Events in the batch, the skipped ones too."""


@dataclass(frozen=True, slots=True)
class IndexStats:
    """The size of the index at one moment."""

    sources: int
    blocks: int
    """Distinct block keys that at least one source holds, over all models and media."""
    placements: int
    """Blocks in sources, each copy counted, over all media."""
    orphans: int
    """Parked blocks; copies of one parked block count once."""
    bytes: int
    """By the accounting of `source_state`: equal contents, equal bytes."""
    by_medium: Mapping[str, int]
    """Medium → placements; no medium counts as GPU. Without zeros."""
    full_sources: frozenset[int]
    """Sources that refused a block and were not cleared since."""
    per_source: Mapping[int, int]
    """Source → placements on its GPU, each copy counted: to compare with the engine's own
    number of blocks. Every source is in it."""
