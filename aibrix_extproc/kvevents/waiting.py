"""The batches of one source that are at hand and not yet applied.

Owns order and copies: a batch that came both live and by replay is given once. Knows neither
states nor why a batch waits.
"""

from collections import deque
from typing import Final, NamedTuple

OVERHEAD_BYTES: Final = 200
"""What a waiting batch takes beside its payload (CPython 3.11: object headers, number, slot)."""


class SequencedBatch(NamedTuple):
    """One batch and its number."""

    sequence: int
    payload: bytes


class Waiting:
    """Live batches in a queue, in order of their numbers, and at most one replayed batch."""

    def __init__(self) -> None:
        self._queue: deque[SequencedBatch] = deque()
        self._replayed: SequencedBatch | None = None
        self.queue_bytes = 0
        """Memory of the live batches: payloads and OVERHEAD_BYTES each."""
        self.since: float | None = None
        """When the queue was last empty before its first batch; None while it is."""

    def push_live(self, sequence: int, payload: bytes, now: float) -> None:
        """A live batch; its number is above those that wait."""
        if not self._queue:
            self.since = now
        self._queue.append(SequencedBatch(sequence, payload))
        self.queue_bytes += len(payload) + OVERHEAD_BYTES

    def push_replayed(self, sequence: int, payload: bytes) -> None:
        """The next batch of a replay; the one before it was taken, or is void."""
        self._replayed = SequencedBatch(sequence, payload)

    def take_live(self, expected: int) -> SequencedBatch | None:
        """The live batch with this number, where it is at hand. Older ones are copies: they go."""
        while self._queue and self._queue[0].sequence < expected:
            self._pop()
        if self._queue and self._queue[0].sequence == expected:
            return self._pop()
        return None

    def take_replayed(self, expected: int) -> SequencedBatch | None:
        """The same for the replayed batch."""
        replayed = self._replayed
        if replayed is None or replayed.sequence > expected:
            return None
        self._replayed = None
        return replayed if replayed.sequence == expected else None

    @property
    def first_live(self) -> int | None:
        """The lowest number of the live batches that wait."""
        return self._queue[0].sequence if self._queue else None

    @property
    def replayed(self) -> int | None:
        """The number of the replayed batch that is at hand."""
        return None if self._replayed is None else self._replayed.sequence

    @property
    def first(self) -> int | None:
        """The lowest number at hand."""
        known = [n for n in (self.first_live, self.replayed) if n is not None]
        return min(known, default=None)

    def drop_replayed(self) -> None:
        """The replayed batch at hand is void."""
        self._replayed = None

    def clear(self) -> None:
        """All of it is void."""
        self._queue.clear()
        self._replayed = None
        self.queue_bytes = 0
        self.since = None

    def _pop(self) -> SequencedBatch:
        batch = self._queue.popleft()
        self.queue_bytes -= len(batch.payload) + OVERHEAD_BYTES
        if not self._queue:
            self.since = None
        return batch
