"""What a snapshot has for the sources of this process, until they have claimed it.

Owns which record belongs to which rank of which pod, and what becomes of it. A record is claimed
once, by a source that has the same pod (name, UID, address), rank, model and adapter; it is
imported by the thread that reads that source's events, before its first connection.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Protocol

from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.index import IndexStats
from aibrix_extproc.index.saved import is_full
from aibrix_extproc.kvevents.checkpoint import Checkpoint
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.snapshot.files import SnapshotFile
from aibrix_extproc.snapshot.format import Record, RecordHead

log = logging.getLogger(__name__)

_NO_LIMIT: Final = 2**64


class Outcome(StrEnum):
    """What became of one saved source: the labels of `aibrix_kv_snapshot_sources_total`."""

    IMPORTED = "imported"
    """It is in the index, and waits for the engine's proof."""
    REFUSED = "refused"
    """Its bytes are no export that this index reads."""
    FULL = "full"
    """It was full, and there is more room now: it starts clean, to hold what it left out."""
    UNCLAIMED = "unclaimed"
    """No rank came that it belongs to."""


class ImportIndex(Protocol):
    """What an import needs of the index."""

    def import_source(self, source: int, data: bytes) -> None: ...
    def stats(self) -> IndexStats: ...


Owner = tuple[str, str, str, int, str, int | None]


def owner_of(pod: Pod, rank: Rank) -> Owner:
    """All that must be equal for a saved cache to be this rank's."""
    return (*pod.identity, rank.rank, pod.model, pod.lora_id)


def _owner(head: RecordHead) -> Owner:
    return (head.pod, head.uid, head.address, head.rank, head.model, head.lora_id)


class WarmStart:
    """The records of one snapshot that nobody has claimed yet.

    `claim`, `unclaimed` and `close` are for one thread; a claim's `restore` for any other.
    """

    def __init__(
        self, file: SnapshotFile, index: ImportIndex, metrics: Metrics, max_index_bytes: int
    ) -> None:
        """`max_index_bytes`: the index's limit here; 0: none."""
        self._file = file
        self._index = index
        self._metrics = metrics
        limits = (max_index_bytes or _NO_LIMIT, file.contents.max_index_bytes or _NO_LIMIT)
        self._more_room = limits[0] > limits[1]
        self._less_room = limits[0] < limits[1]
        self._records = {_owner(record.head): record for record in file.contents.records}

    def claim(self, pod: Pod, rank: Rank) -> "Claim | None":
        """What is saved of this rank; None where nothing is, or it was claimed already."""
        record = self._records.pop(owner_of(pod, rank), None)
        return None if record is None else Claim(self, record)

    def unclaimed(self) -> Iterator[tuple[RecordHead, bytes]]:
        """What waits now, to be saved again; read one by one. Raises OSError or ValueError then."""
        records = list(self._records.values())
        return ((record.head, self._file.export(record)) for record in records)

    def close(self) -> int:
        """Claims end; returns how many records nobody claimed. Harmless when called again.

        A claim that is under way finds its file closed, and its source starts clean.
        """
        left = len(self._records)
        self._records.clear()
        if left:
            self._metrics.snapshot_sources.labels(Outcome.UNCLAIMED).inc(left)
        self._file.close()
        return left

    def restore(self, record: Record, source: int) -> Checkpoint | None:
        """See `Claim.restore`."""
        head = record.head
        outcome = Outcome.REFUSED
        try:
            checkpoint = Checkpoint(head.sequence, head.digest, head.complete)
            export = self._file.export(record)
            if self._more_room and is_full(export):
                outcome = Outcome.FULL
                return None
            self._index.import_source(source, export)
            outcome = Outcome.IMPORTED
            if self._less_room and source in self._index.stats().full_sources:
                checkpoint = replace(checkpoint, complete=False)
        except (OSError, ValueError) as error:
            log.warning("%s rank %d starts clean: %s", head.pod, head.rank, error)
            return None
        else:
            return checkpoint
        finally:
            self._metrics.snapshot_sources.labels(outcome).inc()


@dataclass(frozen=True, slots=True)
class Claim:
    """One saved source, claimed by the one that it belongs to."""

    _start: WarmStart
    _record: Record

    def restore(self, source: int) -> Checkpoint | None:
        """Import it into a source that was just added, and say how far its events are in it.

        None where it cannot be used: the source is as it was, and starts clean. Takes 3 ms for
        10,000 blocks with the core. Raises KeyError where the source has gone meanwhile.
        """
        return self._start.restore(self._record, source)
