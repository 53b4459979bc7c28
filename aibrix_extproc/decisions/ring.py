"""The last decisions, in a ring of fixed size.

Owns the memory of them: some 1.5 kB each at most, so 15 MB when full. Knows no clock.
"""

from collections.abc import Iterator
from typing import Final

from aibrix_extproc.decisions.record import DecisionRecord

RING_DECISIONS: Final = 10_000


class DecisionRing:
    """The last `size` records."""

    def __init__(self, size: int = RING_DECISIONS) -> None:
        self._records: list[DecisionRecord | None] = [None] * size
        self._next = 0

    def add(self, record: DecisionRecord) -> None:
        """Keep a record in the place of the oldest."""
        place = self._next
        self._records[place] = record
        place += 1
        self._next = 0 if place == len(self._records) else place

    def newest_first(self, limit: int, request_id: str | None = None) -> list[DecisionRecord]:
        """At most `limit` records, of one request where an id is given."""
        found: list[DecisionRecord] = []
        for record in self._backwards():
            if request_id is None or record.request_id == request_id:
                found.append(record)
                if len(found) >= limit:
                    break
        return found

    def since(self, last: DecisionRecord | None) -> list[DecisionRecord]:
        """Those that came after `last`, the newest first; all, where that is None or gone."""
        found: list[DecisionRecord] = []
        for record in self._backwards():
            if record is last:
                break
            found.append(record)
        return found

    def _backwards(self) -> Iterator[DecisionRecord]:
        for back in range(1, len(self._records) + 1):
            record = self._records[self._next - back]
            if record is None:
                return
            yield record
