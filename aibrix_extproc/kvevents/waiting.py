"""What one source waits for: the batches at hand that are not yet applied, and a replay.

Owns order and copies: a batch that came both live and by replay is given once. Knows neither
states nor why a batch waits.
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple


class SequencedBatch(NamedTuple):
    """One batch and its number."""

    sequence: int
    payload: bytes


@dataclass(slots=True)
class Question:
    """A replay under way, and what was known when it was asked for."""

    ask: int
    start: int
    known: bytes | None
    """Digest of the batch `start`, as it was applied: one that differs is another engine's."""
    live_high: int | None
    """Highest live number before it was asked: holes below that are holes for good at its end."""
    heard_live: bool
    answered: bool = False
    holes: bool = False


class Waiting:
    """Live batches in a queue, in order of their numbers, and at most one replayed batch."""

    def __init__(self) -> None:
        self._queue: deque[SequencedBatch] = deque()
        self._replayed: SequencedBatch | None = None
        self.queue_bytes = 0
        """Payload bytes of the live batches."""

    def push_live(self, sequence: int, payload: bytes) -> None:
        """A live batch; its number is above those that wait."""
        self._queue.append(SequencedBatch(sequence, payload))
        self.queue_bytes += len(payload)

    def push_replayed(self, sequence: int, payload: bytes) -> None:
        """The next batch of a replay; the one before it was taken, or is void."""
        self._replayed = SequencedBatch(sequence, payload)

    def take(self, expected: int) -> SequencedBatch | None:
        """The batch with this number, where it is at hand. Older ones are copies: they go."""
        while self._queue and self._queue[0].sequence < expected:
            self._pop()
        if self._queue and self._queue[0].sequence == expected:
            return self._pop()
        replayed = self._replayed
        if replayed is not None and replayed.sequence <= expected:
            self._replayed = None
            return replayed if replayed.sequence == expected else None
        return None

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

    def _pop(self) -> SequencedBatch:
        batch = self._queue.popleft()
        self.queue_bytes -= len(batch.payload)
        return batch
