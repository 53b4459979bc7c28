"""The state machine of one source: order, gaps, replay, restart. No socket, no clock, no index.

The driver (`feed.py`) reports what happened, with the time in seconds (`now`, monotonic), and
carries out the effects that come back, in order. An `Apply` is always the last of them: its
result goes into `applied`, which gives the next effects. So one batch is decided at a time.
The transitions, and the two rules that make them sound, stand in the package's docstring.
"""

from dataclasses import dataclass

from aibrix_extproc.kvevents.belief import IN_SYNC, Belief
from aibrix_extproc.kvevents.checkpoint import Checkpoint, digest_of
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
from aibrix_extproc.kvevents.waiting import Question, SequencedBatch, Waiting

__all__ = ["SourceState", "SourceSync", "SyncLimits"]

_OVERFLOWS_BEFORE_GIVING_UP = 2
"""In a row; then the source goes on without a replay, else it could be LOST for ever."""


@dataclass(frozen=True, slots=True)
class SyncLimits:
    """Bounds of one source; the settings `kv_queue_bytes` and so on have their meaning."""

    queue_bytes: int
    idle_probe_s: float
    lost_after_s: float


class SourceSync:
    """One source's state. Not thread-safe, except that its properties may be read anywhere."""

    def __init__(self, limits: SyncLimits, *, has_replay: bool, now: float) -> None:
        self._limits = limits
        self._has_replay = has_replay
        self._belief = Belief()
        self._contact = Contact(now)
        # What is applied: `_expected` is the next number, `_last` the digest of the batch before.
        self._expected = 0
        self._last: bytes | None = None
        self._applying = False
        self._unproven = False
        # What waits, and for which answer.
        self._waiting = Waiting()
        self._question: Question | None = None
        self._asks = 0
        self._asked_at = now
        self._answered_up_to = -1
        self._take_any = False
        self._overflows = 0
        self._resync_at = now

    # -- what others may read -----------------------------------------------------------------

    @property
    def state(self) -> SourceState:
        return self._belief.state

    @property
    def usable(self) -> bool:
        """Whether its depth may be believed: what is held is right, or was a moment ago."""
        return self._belief.usable

    @property
    def first_sync_done(self) -> bool:
        """It has been EXACT, PARTIAL or LOST once."""
        return self._belief.first_sync_done

    @property
    def sequence(self) -> int | None:
        """The last number applied of this engine process."""
        return None if self._last is None else self._expected - 1

    @property
    def pending_bytes(self) -> int:
        """Payload bytes of live batches that wait for a replay."""
        return self._waiting.queue_bytes

    @property
    def complete(self) -> bool:
        """Every batch since the engine's start, or since it was empty, is applied."""
        return self._belief.complete

    # -- before the first contact -------------------------------------------------------------

    def resume(self, checkpoint: Checkpoint) -> None:
        """The index holds what it held at `checkpoint`, as if those batches had been applied.

        Nothing of it is believed before the engine's replay from that number has proved that the
        same process answers; where it cannot, the source is cleared and starts from 0. Raises
        ValueError once there was contact.
        """
        if self._contact.stands or self._belief.state is not SourceState.CONNECTING:
            raise ValueError("a source can be resumed only before its first contact")
        self._expected = checkpoint.sequence + 1
        self._last = checkpoint.digest
        self._belief.dirty = True
        self._belief.complete = checkpoint.complete
        self._belief.why = "resumed, and the engine is the same"

    # -- the connection -----------------------------------------------------------------------

    def connected(self, now: float) -> Effects:
        """A new connection to the engine stands; its live batches follow."""
        if not self._contact.stands:
            self._connect(now)
        return self._pump(now)

    def disconnected(self, now: float) -> Effects:
        """The connection is gone; none of its batches will follow."""
        if self._contact.stands:
            self._hang_up(now)
        return self._belief.flush()

    def tick(self, now: float) -> Effects:
        """Time has passed; call it a few times a second."""
        if not self._contact.stands:
            away_s = now - self._contact.changed_at
            if self._belief.state is not SourceState.LOST and away_s >= self._limits.lost_after_s:
                if self._belief.state is not SourceState.CONNECTING or self._belief.dirty:
                    self._belief.clear(ClearReason.LOST)
                self._forget()
                self._belief.become(
                    SourceState.LOST, f"no contact for {self._limits.lost_after_s:g} s"
                )
        elif self._belief.state is SourceState.LOST:
            if now >= self._resync_at:
                self._resync(now)
        elif self._belief.state in IN_SYNC and self._may_ask() and self._question is None:
            silent_s = now - max(self._contact.heard_at, self._asked_at)
            if silent_s >= self._contact.patience_s(self._limits.idle_probe_s):
                self._contact.tail_unsure = False
                self._ask(now)
        return self._pump(now)

    # -- batches ------------------------------------------------------------------------------

    def live(self, sequence: int, payload: bytes, now: float) -> Effects:
        """A batch from PUB. Data is contact, even where no one said `connected`."""
        if not self._contact.stands:
            self._connect(now)
        self._contact.heard_at = now
        self._contact.heard_live = True
        high = self._contact.live_high
        if high is not None and sequence <= high and self._belief.state is not SourceState.LOST:
            if sequence == self._expected - 1 and digest_of(payload) == self._last:
                return self._belief.flush()
            self._restart(f"its numbers went from {high} down to {sequence}")
            self._drop_waiting()
            if sequence > 0 and self._may_ask():
                self._ask(now)
        elif high is not None and sequence > max(high + 1, self._expected):
            self._belief.owe(Noticed(Notice.GAP))
        self._contact.live_high = sequence
        if self._belief.state is SourceState.LOST:
            return self._belief.flush()
        self._waiting.push_live(sequence, payload)
        effects = self._pump(now, arrived=sequence)
        if self._waiting.queue_bytes > self._limits.queue_bytes and not self._applying:
            return effects + self._overflow(now)
        return effects

    def replayed(self, ask: int, sequence: int, payload: bytes, now: float) -> Effects:
        """One answer to a question, in order. Answers to an earlier question are ignored."""
        question = self._question
        if question is None or question.ask != ask:
            return ()
        question.answered = True
        known = {question.start: question.known, self._expected - 1: self._last}.get(sequence)
        if known is not None and digest_of(payload) != known:
            self._other_engine(f"its batch {sequence} is not the one applied", now)
            return self._pump(now)
        if self._unproven:
            if sequence >= self._expected:
                self._belief.clear(ClearReason.UNPROVEN)
                self._forget()
                question.holes = True
            self._unproven = False
        self._waiting.push_replayed(sequence, payload)
        return self._pump(now)

    def replay_ended(self, ask: int, now: float) -> Effects:
        """The engine has sent all that it holds."""
        question = self._question
        if question is None or question.ask != ask:
            return ()
        self._question = None
        if not question.answered:
            if question.known is not None:
                self._other_engine("it has not come as far as what was applied", now)
                return self._pump(now)
            self._nothing_to_replay(question)
        if question.live_high is not None:
            self._answered_up_to = question.live_high
        holes = question.holes or (self._hole() is not None and not self._worth_asking())
        self._belief.owe(Noticed(Notice.REPLAY_PARTIAL if holes else Notice.REPLAY_COMPLETE))
        return self._pump(now)

    def replay_failed(self, ask: int, *, port_closed: bool, now: float) -> Effects:
        """No answer, or not all of it, after all attempts. `port_closed`: nobody listens there."""
        question = self._question
        if question is None or question.ask != ask:
            return ()
        self._question = None
        self._contact.tail_unsure = False
        self._belief.owe(Noticed(Notice.NO_REPLAY_PORT if port_closed else Notice.REPLAY_FAILED))
        if self._contact.live_high is not None:
            self._answered_up_to = self._contact.live_high
        if self._unproven:
            self._belief.clear(ClearReason.UNPROVEN)
            self._forget()
        if self._belief.state is SourceState.SYNCING:
            self._belief.why = "the replay port is closed" if port_closed else "the replay failed"
        return self._pump(now)

    def applied(self, *, cleared: bool, loss: ClearReason | None, now: float) -> Effects:
        """The result of the last `Apply`: it held AllBlocksCleared; it lost something."""
        self._applying = False
        if loss is not None:
            self._belief.clear(loss)
            self._belief.why = "a batch could not be read without loss"
        elif cleared:
            self._belief.complete = True
            self._belief.why = "the engine emptied its cache"
        return self._pump(now)

    def failed(self, now: float) -> Effects:
        """The driver failed, so what was applied is not known: start over on a new connection."""
        self._applying = False
        self._hang_up(now)
        self._belief.owe(Reconnect())
        self._belief.clear(ClearReason.ERROR)
        self._forget()
        self._belief.become(SourceState.SYNCING, "this process failed to follow it")
        self._belief.doubt()
        return self._belief.flush()

    # -- moving on ----------------------------------------------------------------------------

    def _pump(self, now: float, arrived: int | None = None) -> Effects:
        """Do all that can be done now, up to the next batch to apply."""
        if self._contact.stands and self._belief.state is not SourceState.LOST:
            while not self._applying and not self._unproven:
                batch = self._waiting.take(self._expected)
                if batch is not None:
                    self._take(batch, live=batch.sequence == arrived)
                elif not self._pass_hole(now):
                    break
            if not self._applying and not self._unproven:
                self._settle()
        return self._belief.flush()

    def _take(self, batch: SequencedBatch, *, live: bool) -> None:
        self._expected = batch.sequence + 1
        self._last = digest_of(batch.payload)
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
        return first if first is not None and first > self._expected else None

    def _worth_asking(self) -> bool:
        """Whether a replay may hold what is missing before the first waiting batch."""
        first = self._waiting.first_live
        asked_since = first is not None and first <= self._answered_up_to
        return self._may_ask() and not asked_since and not self._take_any

    def _pass_hole(self, now: float) -> bool:
        """Skip a hole that stays, or wait for what may fill it. True: skipped, look again."""
        first = self._hole()
        if first is None:
            return False
        if self._waiting.replayed is None:
            if self._question is None and self._worth_asking():
                self._ask(now)
            if self._question is not None:
                self._belief.become(SourceState.SYNCING, f"batch {self._expected} is missing")
                return False
        if self._question is not None:
            self._question.holes = True
        self._belief.why = f"batch {self._expected} could not be had"
        if self._belief.dirty:
            self._belief.clear(ClearReason.GAP)
        self._belief.complete = False
        self._expected = first
        return True

    def _settle(self) -> None:
        """Leave SYNCING where nothing is missing any more; tell EXACT from PARTIAL."""
        if self._belief.state is SourceState.SYNCING:
            joined = (
                self._contact.live_high is not None and self._contact.live_high < self._expected
            )
            if self._waiting.first is not None or (self._question is not None and not joined):
                return
            self._overflows = 0
        self._belief.become(
            SourceState.EXACT if self._belief.complete else SourceState.PARTIAL, self._belief.why
        )

    # -- what happens to the engine -----------------------------------------------------------

    def _connect(self, now: float) -> None:
        self._contact.begin(now)
        self._resync(now)

    def _resync(self, now: float) -> None:
        """Begin to follow this connection."""
        self._answered_up_to = -1
        if not self._has_replay:
            if self._last is not None:
                self._belief.clear(ClearReason.UNPROVEN)
                self._forget()
            self._belief.owe(Noticed(Notice.NO_REPLAY_PORT))
            self._belief.become(SourceState.PARTIAL, "it has no replay port")
            return
        if self._overflows >= _OVERFLOWS_BEFORE_GIVING_UP:
            self._overflows = 0
            self._take_any = True
            self._belief.become(SourceState.PARTIAL, "no replay, since it overflowed the queue")
            return
        self._unproven = self._last is not None
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
        self._answered_up_to = -1
        self._belief.become(SourceState.SYNCING, why)
        self._belief.doubt()

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

    def _nothing_to_replay(self, question: Question) -> None:
        """An empty answer to a question from 0."""
        if question.heard_live:
            # It publishes and holds nothing (buffer_steps: 0): asking is useless.
            self._contact.no_buffer = True
        elif self._expected == 0:
            self._belief.complete = True
            self._belief.why = "it has published nothing yet"

    def _overflow(self, now: float) -> Effects:
        waiting_bytes = self.pending_bytes
        self._drop_waiting()
        self._belief.clear(ClearReason.OVERFLOW)
        self._forget()
        self._overflows += 1
        self._resync_at = now + self._limits.idle_probe_s
        self._belief.become(
            SourceState.LOST, f"{waiting_bytes} bytes of batches waited for a replay"
        )
        return self._belief.flush()

    # -- small parts --------------------------------------------------------------------------

    def _may_ask(self) -> bool:
        return self._has_replay and not self._contact.no_buffer

    def _ask(self, now: float) -> None:
        self._cancel()
        self._asks += 1
        self._asked_at = now
        start = 0 if self._last is None else self._expected - 1
        self._question = Question(
            self._asks, start, self._last, self._contact.live_high, self._contact.heard_live
        )
        self._belief.owe(AskReplay(self._asks, start))

    def _cancel(self) -> None:
        if self._question is not None:
            self._belief.owe(CancelReplay(self._question.ask))
            self._question = None
        self._waiting.drop_replayed()

    def _drop_waiting(self) -> None:
        self._cancel()
        self._waiting.clear()

    def _forget(self) -> None:
        """Nothing is known of the engine's numbers; the next question begins at 0."""
        self._expected = 0
        self._last = None
        self._unproven = False
        self._belief.complete = False
