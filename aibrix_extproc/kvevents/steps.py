"""The steps that the inputs of a source have in common: what is taken, asked, cleared, begun anew.

Owns how the parts of one source (belief, contact, progress, asking, waiting) change together.
Knows no socket, no clock and no index; `source` has the inputs, and the table of transitions.
"""

from typing import Final

from aibrix_extproc.kvevents.asking import Asking, Question
from aibrix_extproc.kvevents.belief import Belief
from aibrix_extproc.kvevents.contact import Contact
from aibrix_extproc.kvevents.effects import (
    Apply,
    AskReplay,
    CancelReplay,
    ClearReason,
    Effects,
    Notice,
    Noticed,
    Reconnect,
    SourceState,
)
from aibrix_extproc.kvevents.patience import Due, Patience, SyncLimits
from aibrix_extproc.kvevents.progress import Mark, Progress
from aibrix_extproc.kvevents.waiting import SequencedBatch, Waiting

_OVERFLOWS_BEFORE_GIVING_UP: Final = 2
"""In a row; then the source goes on without a replay, else it could be LOST for ever."""
_FIRST_RESYNC_S: Final = 1.0
"""After a first overflow; twice as long after the next."""


class Steps:
    """The parts of one source, and how they move together."""

    def __init__(self, limits: SyncLimits, *, has_replay: bool, now: float) -> None:
        self._limits = limits
        self._patience = Patience(limits)
        self._belief = Belief()
        self._contact = Contact(now)
        self._progress = Progress()
        self._waiting = Waiting()
        self._asking = Asking(has_replay=has_replay, now=now)
        self._applying = False
        self._sequence_before: int | None = None
        """The last number applied before the batch that is being applied."""
        self._unproven = False
        """What is held is of an earlier connection, and nothing shows that its process is this."""
        self._take_any = False
        """Begin with whatever comes next, and ask for nothing before it."""
        self._overflows = 0
        self._resync_at: float | None = None
        """When a source that overflowed begins again; None where a sign of life is waited for."""
        self._latest = now

    def _clock(self, now: float) -> float:
        """Time that never goes back: a clock that jumps back stands still for a while."""
        self._latest = max(self._latest, now)
        return self._latest

    def _hear(self, now: float) -> None:
        """A sign of life of the engine."""
        self._contact.heard_at = now
        self._belief.mark_stale(False, 0.0)
        if self._belief.state is SourceState.LOST and self._resync_at is None:
            self._resync(now)

    # -- moving on ----------------------------------------------------------------------------

    def _pump(self, now: float, arrived: int | None = None) -> Effects:
        """Do all that can be done now, up to the next batch to apply."""
        if self._contact.stands and self._belief.state is not SourceState.LOST:
            while not self._applying and not self._unproven:
                expected, question = self._progress.expected, self._asking.question
                unproven = question is not None and question.rebuilds_unproven
                batch = None if unproven else self._waiting.take_live(expected)
                if batch is not None:
                    if question is not None and question.met is None:
                        question.met = Mark.of(*batch)
                    self._take(batch, live=batch.sequence == arrived)
                elif (batch := self._waiting.take_replayed(expected)) is not None:
                    self._take(batch, live=False)
                elif not self._pass_hole(now):
                    break
            if not self._applying and not self._unproven:
                self._settle()
        return self._belief.flush()

    def _take(self, batch: SequencedBatch, *, live: bool) -> None:
        mark = self._progress.mark
        self._sequence_before = None if mark is None else mark.sequence
        self._progress.take(batch.sequence, batch.payload, first=not self._belief.dirty)
        self._belief.dirty = True
        self._applying = True
        self._take_any = False
        if batch.sequence == 0:
            self._belief.complete = True
            self._belief.why = "complete from its first batch"
        self._belief.owe(Apply(batch.sequence, batch.payload, live))

    def _hole(self) -> int | None:
        """The first number at hand, where it is not the expected one."""
        first = self._waiting.first
        return first if first is not None and first > self._progress.expected else None

    def _worth_asking(self) -> bool:
        """Whether a replay may hold what is missing before the first waiting batch."""
        first = self._waiting.first_live
        asked_since = first is not None and first <= self._asking.answered_up_to
        return self._asking.possible and not asked_since and not self._take_any

    def _pass_hole(self, now: float) -> bool:
        """Skip a hole that stays, or wait for what may fill it. True: skipped, look again."""
        first = self._hole()
        if first is None:
            return False
        expected = self._progress.expected
        if self._waiting.replayed is None:
            if self._asking.question is None and self._worth_asking():
                self._ask(now)
            if self._asking.question is not None:
                self._belief.become(SourceState.SYNCING, f"batch {expected} is missing")
                return False
        if self._asking.question is not None:
            self._asking.question.holes = True
        self._belief.why = f"batch {expected} could not be had"
        if self._belief.dirty:
            self._belief.clear(ClearReason.GAP)
        self._belief.complete = False
        self._progress.skip_to(first)
        return True

    def _settle(self) -> None:
        """Leave SYNCING where nothing is missing any more; tell EXACT from PARTIAL."""
        if self._belief.state is SourceState.SYNCING:
            high, question = self._contact.live_high, self._asking.question
            joined = high is not None and high < self._progress.expected
            if self._waiting.first is not None:
                return
            if question is not None and (question.rebuilds_unproven or not joined):
                return
            self._overflows = 0
        self._belief.become(
            SourceState.EXACT if self._belief.complete else SourceState.PARTIAL, self._belief.why
        )

    # -- time ---------------------------------------------------------------------------------

    def _do(self, due: Due, now: float) -> None:
        """What is due with time."""
        match due:
            case Due.LOST_AWAY:
                self._lose(f"no contact for {self._limits.lost_after_s:g} s")
            case Due.LOST_SILENT:
                self._lose(f"silent for {now - self._contact.heard_at:.0f} s")
            case Due.STALE:
                self._belief.mark_stale(True, now - self._contact.heard_at)
                if not self._asking.possible and self._belief.dirty:
                    self._belief.clear(ClearReason.STALE)
                    self._belief.why = "silent, and it cannot be asked"
            case Due.UNASKABLE:
                self._belief.complete = False
                self._belief.why = "it cannot be asked whether its last batch was lost"
            case Due.GIVE_UP:
                self._cancel()
                self._belief.owe(Noticed(Notice.REPLAY_FAILED))
                self._no_answer("its replay port does not answer", now)
            case Due.DOUBT:
                self._belief.doubt()
            case Due.ASK_ANEW:
                self._ask(now)
            case Due.CHECK | Due.REFILL | Due.PROBE:
                self._contact.tail_unsure = False
                check = self._asking.check_wanted if due is Due.CHECK else None
                self._ask(now, refill=due is Due.REFILL, check=check)

    def _tick_lost(self, now: float) -> None:
        if not self._contact.stands:
            return
        if self._resync_at is not None:
            if now >= self._resync_at:
                self._resync(now)
        elif self._asking.question is None and self._patience.may_probe(
            self._contact, self._asking, now
        ):
            self._ask(now)

    def _lose(self, why: str) -> None:
        """Nothing can be said of it any more, until a sign of life."""
        if self._belief.state is not SourceState.CONNECTING or self._belief.dirty:
            self._belief.clear(ClearReason.LOST)
        self._drop_waiting()
        self._forget()
        self._resync_at = None
        self._belief.become(SourceState.LOST, why)

    # -- what happens to the engine -----------------------------------------------------------

    def _connect(self, now: float) -> None:
        self._contact.begin(now)
        self._belief.mark_stale(False, 0.0)
        self._resync(now)

    def _resync(self, now: float) -> None:
        """Begin to follow this connection."""
        self._resync_at = None
        self._asking.new_connection()
        if not self._asking.has_replay:
            if self._progress.mark is not None:
                self._belief.clear(ClearReason.UNPROVEN)
                self._forget()
            self._belief.owe(Noticed(Notice.NO_REPLAY_PORT))
            self._belief.become(SourceState.PARTIAL, "it has no replay port")
            return
        if self._overflows >= _OVERFLOWS_BEFORE_GIVING_UP:
            self._overflows = 0
            self._take_any = self._asking.older_wanted = self._asking.refill_slowly = True
            self._asking.ended_at = now
            self._belief.become(SourceState.PARTIAL, "no replay, since it overflowed the queue")
            return
        self._unproven = self._progress.mark is not None
        self._contact.tail_unsure = True
        self._belief.become(SourceState.SYNCING, "connected")
        self._ask(now)

    def _hang_up(self, now: float) -> None:
        self._contact.end(now)
        self._unproven = False
        self._drop_waiting()

    def _restart(self, why: str) -> None:
        """Another engine process: nothing of the one before is left."""
        self._belief.owe(Noticed(Notice.RESTART))
        self._belief.clear(ClearReason.RESTART)
        self._forget()
        self._asking.new_process()
        self._belief.become(SourceState.SYNCING, why)
        self._belief.doubt()

    def _restart_from(self, sequence: int, high: int, now: float) -> None:
        """Live numbers went down: what waited was of the process before."""
        self._restart(f"its numbers went from {high} down to {sequence}")
        self._drop_waiting()
        if sequence > 0 and self._asking.possible:
            self._ask(now)

    def _other_engine(self, why: str, now: float) -> None:
        """The replay port's engine is not the one whose batches were applied."""
        same_connection = not self._unproven
        self._restart(why)
        if same_connection:
            # The subscription may still hang on the engine before: its batches must not be mixed
            # with those of this one.
            self._hang_up(now)
            self._belief.owe(Reconnect())
        else:
            self._ask(now)

    def _first_answer(self, question: Question, sequence: int) -> None:
        """What the number of the first answer says of all that is held."""
        mark = self._progress.mark
        if self._unproven:
            if mark is not None and sequence > mark.sequence:
                self._belief.clear(ClearReason.UNPROVEN)
                self._forget()
                question.holes = True
            self._unproven = False
        elif question.refill and not self._belief.complete:
            if self._belief.dirty:
                if sequence >= self._progress.held_from:
                    question.refill = False
                    return
                self._belief.clear(ClearReason.REFILL)
            self._forget()
            question.rebuilds = True
            self._belief.become(SourceState.SYNCING, "older batches can be had after all")
            self._belief.doubt()
        question.refill = False

    def _nothing_to_replay(self, question: Question) -> None:
        """An empty answer to a question from 0."""
        if question.heard_live:
            # It publishes and holds nothing (buffer_steps: 0): asking is useless.
            self._asking.no_buffer = True
        elif self._progress.expected == 0:
            self._belief.complete = True
            self._belief.why = "it has published nothing yet"

    def _no_answer(self, why: str, now: float) -> None:
        """The question was in vain: clear what it leaves unproven, and go on with what comes."""
        question = self._asking.question
        if question is not None and question.answered:
            self._asking.broke_off(self._progress.expected)
        self._asking.end(now)
        self._contact.tail_unsure = False
        if self._unproven or not self._belief.complete or self._hole() is not None:
            self._asking.older_wanted = True
        if self._contact.live_high is not None:
            self._asking.answered_up_to = self._contact.live_high
        if self._unproven or (question is not None and question.rebuilds_unproven):
            self._belief.clear(ClearReason.UNPROVEN)
            self._forget()
        if self._belief.state is SourceState.SYNCING:
            self._belief.why = why

    def _overflow(self, now: float) -> Effects:
        waiting_bytes = self._waiting.queue_bytes
        self._drop_waiting()
        self._belief.clear(ClearReason.OVERFLOW)
        self._forget()
        self._overflows += 1
        self._resync_at = now + _FIRST_RESYNC_S * self._overflows
        self._belief.become(
            SourceState.LOST, f"{waiting_bytes} bytes of batches waited for a replay"
        )
        return self._belief.flush()

    # -- small parts --------------------------------------------------------------------------

    def _ask(self, now: float, *, refill: bool = False, check: Mark | None = None) -> None:
        """Ask from the last batch applied; from 0 where none is, or to refill."""
        before = self._asking.question
        self._cancel()
        rebuilds = before is not None and before.rebuilds_unproven
        if rebuilds:
            self._belief.clear(ClearReason.UNPROVEN)
            self._forget()
        if check is not None:
            self._asking.check_wanted = None
        proof = check or (before.proof if before and rebuilds else self._progress.mark)
        start = 0 if refill or rebuilds or proof is None else proof.sequence
        high = self._contact.live_high
        question = Question(
            ask=self._asking.next_number(),
            start=start,
            proof=proof,
            live_high=high,
            heard_live=high is not None,
            refill=refill,
            rebuilds=rebuilds,
            check=check is not None,
        )
        self._asking.begin(question, now)
        self._belief.owe(AskReplay(question.ask, start))

    def _cancel(self) -> None:
        if self._asking.question is not None:
            self._belief.owe(CancelReplay(self._asking.question.ask))
            self._asking.question = None
        self._waiting.drop_replayed()

    def _drop_waiting(self) -> None:
        self._cancel()
        self._waiting.clear()

    def _forget(self) -> None:
        """Nothing is known of the engine's numbers; the next question begins at 0."""
        self._progress.forget()
        self._asking.check_wanted = None
        self._unproven = False
        self._belief.complete = False
