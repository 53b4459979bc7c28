"""How far one source's batches are applied, and by what its engine process is known.

Owns the next number, and the digest of the batch before it. Knows neither connections nor states.
"""

from typing import NamedTuple

from aibrix_extproc.kvevents.checkpoint import digest_of


class Mark(NamedTuple):
    """A batch that was applied: whoever sends another one under its number is another process."""

    sequence: int
    digest: bytes

    @classmethod
    def of(cls, sequence: int, payload: bytes) -> "Mark":
        """Of a batch."""
        return cls(sequence, digest_of(payload))

    def same(self, sequence: int, payload: bytes) -> bool:
        """Whether this is that batch."""
        return sequence == self.sequence and digest_of(payload) == self.digest

    def contradicts(self, sequence: int, payload: bytes) -> bool:
        """Whether this batch shows that its sender is another process."""
        return sequence == self.sequence and digest_of(payload) != self.digest


class Progress:
    """What is applied of one engine process: numbers `held_from` to `expected - 1`."""

    def __init__(self) -> None:
        self.expected = 0
        """The next number."""
        self.held_from = 0
        """The first number applied since the source was last emptied."""
        self._digest: bytes | None = None

    @property
    def mark(self) -> Mark | None:
        """The last batch applied; None where nothing is known of the engine's numbers."""
        return None if self._digest is None else Mark(self.expected - 1, self._digest)

    def take(self, sequence: int, payload: bytes, *, first: bool) -> None:
        """The next batch is applied; `first` since the source was emptied."""
        if first:
            self.held_from = sequence
        self.expected = sequence + 1
        self._digest = digest_of(payload)

    def resume(self, sequence: int, digest: bytes) -> None:
        """As if everything up to this batch had been applied."""
        self.held_from = 0
        self.expected = sequence + 1
        self._digest = digest

    def skip_to(self, sequence: int) -> None:
        """The batches before this one cannot be had."""
        self.expected = sequence

    def forget(self) -> None:
        """Nothing is known of the engine's numbers."""
        self.expected = 0
        self._digest = None
