"""Which batches of one engine process are missing, from the numbers of those that came.

Owns the holes. Knows no payload, no time, and not what is done about a hole.
"""

from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

MAX_HOLES: Final = 1_000
"""Kept with their numbers; of those beyond only the size is known, and they are never filled."""


class Step(Enum):
    """What a live number is to the one before it."""

    FIRST = auto()
    NEXT = auto()
    GAP = auto()
    RESTART = auto()
    """It went down, or came twice with other content: another engine process."""
    REPEATED = auto()
    """The same batch once more."""


class Numbers:
    """The numbers of one source, as they came: live ones, and those of replays."""

    def __init__(self) -> None:
        self.first: int | None = None
        """The first live number of this engine process that was seen."""
        self.last: int | None = None
        """The last one."""
        self.gaps = 0
        """Holes seen in the live numbers, over all engine processes."""
        self.refilled = 0
        """Missing numbers that a replay brought after all."""
        self._digest: bytes | None = None
        self._holes: list[tuple[int, int]] = []
        self._uncounted = 0
        self._reply: int | None = None

    def live(self, number: int, digest: bytes) -> Step:
        """A live batch came; `digest` tells it from another one under the same number."""
        last, self.last = self.last, number
        before, self._digest = self._digest, digest
        if last is None:
            self.first = number
            return Step.FIRST
        if number > last:
            return self._note(last + 1, number - 1)
        if number == last and digest == before:
            return Step.REPEATED
        self._begin(number)
        return Step.RESTART

    def replayed(self, number: int) -> bool:
        """A replay brought this batch; whether it had been missing.

        A number between two replies, before the first live one, is missing too: it was burnt, or
        the reply was lost.
        """
        before, self._reply = self._reply, number
        if before is not None and before + 1 < number and not self._seen_live_before(number):
            self._note_unanswered(before + 1, number - 1)
        for place, (low, high) in enumerate(self._holes):
            if low <= number <= high:
                rest = [(low, number - 1), (number + 1, high)]
                self._holes[place : place + 1] = [(a, b) for a, b in rest if a <= b]
                self.refilled += 1
                return True
        return False

    def replay_over(self) -> None:
        """The next reply is the first of another answer."""
        self._reply = None

    def other_process(self) -> None:
        """It turned out that another engine process is behind the last live numbers.

        What was missing before them is of a process that is no more.
        """
        self._begin(self.last)

    @property
    def missing(self) -> int:
        """How many numbers of this engine process are missing now."""
        return sum(high - low + 1 for low, high in self._holes) + self._uncounted

    @property
    def holes(self) -> tuple[tuple[int, int], ...]:
        """The missing numbers, first and last of each hole, rising."""
        return tuple(self._holes)

    def _begin(self, number: int | None) -> None:
        self.first = number
        self._reply = None
        self._holes.clear()
        self._uncounted = 0

    def _seen_live_before(self, number: int) -> bool:
        return self.first is not None and self.first < number

    def _note_unanswered(self, low: int, high: int) -> None:
        known = any(a <= high and low <= b for a, b in self._holes)
        if not known and len(self._holes) < MAX_HOLES:
            self._holes = sorted([*self._holes, (low, high)])

    def _note(self, low: int, high: int) -> Step:
        if low > high:
            return Step.NEXT
        self.gaps += 1
        if len(self._holes) < MAX_HOLES:
            self._holes.append((low, high))
        else:
            self._uncounted += high - low + 1
        return Step.GAP


def spelled(holes: Iterable[tuple[int, int]], limit: int = 4) -> str:
    """`5-9, 13`; of more than `limit` holes the last ones, after an ellipsis."""
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in holes]
    more = ["…"] if len(texts) > limit else []
    return ", ".join(more + texts[-limit:])
