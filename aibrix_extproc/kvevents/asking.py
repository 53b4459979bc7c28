"""What one source asks its engine's replay port, and what is known of the answers.

Owns the question under way, whether asking is of use, and whether older batches may still be had.
Knows neither states nor what is applied, and does not ask by itself.
"""

from dataclasses import dataclass
from typing import Final

from aibrix_extproc.kvevents.progress import Mark

_BROKEN_OFF_TOO_OFTEN: Final = 5


@dataclass(slots=True)
class Question:
    """A replay under way, and what was known when it was asked for."""

    ask: int
    start: int
    proof: Mark | None
    """A batch applied before: an answer that contradicts it is another engine's."""
    live_high: int | None
    """Highest live number before it was asked: holes below that are holes for good at its end."""
    heard_live: bool
    refill: bool = False
    """It asks for batches before those that are held: the first answer says whether to rebuild."""
    rebuilds: bool = False
    """What is held is built up anew by its answers."""
    check: bool = False
    """It asks whether the batch of `proof`, which could not be read, was sent so."""
    heard_at: float | None = None
    """When it was put, or last answered; None while it waits for its turn."""
    met: Mark | None = None
    """The first live batch applied while it was under way."""
    highest: int = -1
    """The highest number answered."""
    holes: bool = False

    @property
    def answered(self) -> bool:
        return self.highest >= 0

    @property
    def rebuilds_unproven(self) -> bool:
        """What is built up may yet turn out to be another process's."""
        return self.rebuilds and self.proof is not None and self.highest < self.proof.sequence

    def contradicted(self, sequence: int, payload: bytes) -> bool:
        """Whether this answer is another engine's than what is known of it."""
        marks = (self.proof, self.met)
        return any(mark is not None and mark.contradicts(sequence, payload) for mark in marks)


class Asking:
    """The questions of one source: at most one is under way."""

    def __init__(self, *, has_replay: bool, now: float) -> None:
        self.question: Question | None = None
        self.port_closed = False
        """Nobody listened there; who watches the port will say when that changes."""
        self.no_buffer = False
        """The engine publishes but holds nothing to replay: asking is useless."""
        self.older_wanted = False
        """No replay from 0 came to its end, so the engine may hold more than was applied."""
        self.check_wanted: Mark | None = None
        """This live batch could not be read: was it sent so, or spoilt on the way?"""
        self.unreadable_is_usual = False
        """The engine itself sends what cannot be read."""
        self.asked_at = now
        self.ended_at = now
        self.refill_slowly = False
        """Asking from 0 came to no good end several times: no more than one try an interval."""
        self.answered_up_to = -1
        """Holes before live batches up to this number were asked for, in vain."""
        self._has_replay = has_replay
        self._asks = 0
        self._broken_off: tuple[int, int] = (-1, 0)

    @property
    def possible(self) -> bool:
        """Whether an answer can be hoped for."""
        return self._has_replay and not self.port_closed and not self.no_buffer

    @property
    def has_replay(self) -> bool:
        """Whether a replay port is known at all."""
        return self._has_replay

    def begin(self, question: Question, now: float) -> None:
        """This question is under way from now on."""
        self.question = question
        self.asked_at = now

    def next_number(self) -> int:
        """A number that no question had before."""
        self._asks += 1
        return self._asks

    def under_way(self, ask: int) -> Question | None:
        """The question of this number, where it is the one under way."""
        question = self.question
        return question if question is not None and question.ask == ask else None

    def end(self, now: float) -> None:
        """No question is under way any more."""
        self.question = None
        self.ended_at = now

    def new_connection(self) -> None:
        """What was found out about the replay port was another connection's."""
        self.port_closed = self.no_buffer = self.refill_slowly = False
        self.answered_up_to = -1

    def new_process(self) -> None:
        """What was found out about the batches was another process's."""
        self.older_wanted = self.unreadable_is_usual = self.refill_slowly = False
        self.check_wanted = None
        self.answered_up_to = -1

    def broke_off(self, expected: int) -> None:
        """Answers ended before their end, at this number; where they always do, ask less often.

        A batch larger than AIBRIX_KV_MAX_MESSAGE_BYTES ends each connection that brings it.
        """
        number, times = self._broken_off
        self._broken_off = (expected, times + 1 if number == expected else 1)
        self.refill_slowly |= self._broken_off[1] >= _BROKEN_OFF_TOO_OFTEN

    def all_answered(self) -> None:
        """A replay from 0 came to its end: the engine holds no older batches."""
        self.older_wanted = self.refill_slowly = False
