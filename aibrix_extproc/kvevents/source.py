"""The state machine of one source: order, gaps, replay, restart. No socket, no clock, no index.

The driver (`feed.py`) reports what happened, with the time in seconds (`now`), and carries out
the effects that come back, in order. An `Apply` is always the last of them: its result goes into
`applied`, which gives the next effects. So one batch is decided at a time.

| from | on | to | effects |
|---|---|---|---|
| CONNECTING, LOST | contact | SYNCING | ask for a replay from 0 |
| CONNECTING, resumed | contact | SYNCING | ask from the number saved: the same process? |
| SYNCING | a number that continues what was applied | same | apply |
| SYNCING | a live number further on | same | it waits, in order, bounded in bytes |
| SYNCING | the replay ended, or live batches join what was applied | EXACT, PARTIAL | |
| SYNCING | a live batch waits 1 s for an answer | same | ask again, on a new connection |
| SYNCING | it waits 2.2 s, 2.7 at most | PARTIAL | clear what is unproven; older wanted |
| SYNCING | more bytes wait than allowed | LOST | clear; ask again after 1 s, then 2 |
| SYNCING | … for the third time in a row | PARTIAL | no replay; older batches are wanted |
| EXACT, PARTIAL | a live number further on (gap) | SYNCING | ask from the last number applied |
| PARTIAL, older wanted | a live batch, 1 s after the last answer failed | same | ask from 0 |
| PARTIAL, older wanted | that answer begins before what is held | SYNCING | clear, apply it |
| any | a hole that no replay fills, a burnt number | PARTIAL in the end | clear, go on behind it |
| any | a live number that goes down (restart) | SYNCING | clear, ask from 0 |
| any | an answer that contradicts what was applied | SYNCING | clear; ask from 0, or reconnect |
| any | the driver failed | SYNCING | clear, reconnect |
| any | contact lost | same | waiting batches and questions are dropped |
| any | contact again | SYNCING | ask from the last number applied: the same process? |
| any | no contact for `lost_after_s` | LOST | clear |
| EXACT, PARTIAL | AllBlocksCleared, or number 0, applied | EXACT | |
| EXACT | a batch of which blocks were left out, because the index is full | PARTIAL | |
| EXACT, PARTIAL | a batch that lost something | PARTIAL | clear; ask: was it spoilt on the way? |
| EXACT, PARTIAL | it holds more blocks than its engine has | PARTIAL | clear |
| EXACT, PARTIAL | silence (at first a short one) | same | ask from the last number applied |
| any | silence, unanswered, for `stale_after_s` | same, stale | not believed |
| any | … and for `lost_after_s` more | LOST | clear; the next sign of life is contact |

Without a replay port (none is known, it is closed, or it holds nothing): contact leads to PARTIAL,
and clears where something was known; a gap is never filled; EXACT ends with the first silence of
2 s, since nobody can be asked for a lost tail; and a stale source is cleared. A port that was
closed is watched, and asked as soon as it opens.

Two rules make it sound:

- **A connection belongs to one engine process.** Within one, live numbers only grow, so whatever
  grows is the same process. The driver must not give a batch of an old connection after
  `connected`. A new connection proves nothing: a restarted engine may have passed the old number.
- **A question begins with the last batch applied, not with the first one missing**, so that the
  answer proves whose it is: payloads carry the engine's clock, thus no two processes send equal
  ones. An empty answer means an engine that has not come so far: another process.
"""

from aibrix_extproc.kvevents.belief import IN_SYNC
from aibrix_extproc.kvevents.checkpoint import Checkpoint
from aibrix_extproc.kvevents.effects import (
    ClearReason,
    Effects,
    Notice,
    Noticed,
    Reconnect,
    SourceState,
)
from aibrix_extproc.kvevents.patience import SyncLimits
from aibrix_extproc.kvevents.steps import Steps

__all__ = ["SourceState", "SourceSync", "SyncLimits"]


class SourceSync(Steps):
    """One source's state. Not thread-safe, except that its properties may be read anywhere."""

    # -- what others may read -----------------------------------------------------------------

    @property
    def state(self) -> SourceState:
        return self._belief.state

    @property
    def usable(self) -> bool:
        """Whether its depth may be believed: what is held is right, or was a moment ago."""
        return self._belief.usable

    @property
    def stale(self) -> bool:
        """Silent for longer than it is believed."""
        return self._belief.stale

    @property
    def connected_now(self) -> bool:
        """A connection to the engine stands."""
        return self._contact.stands

    @property
    def first_sync_done(self) -> bool:
        """It has been EXACT, PARTIAL or LOST once."""
        return self._belief.first_sync_done

    @property
    def complete(self) -> bool:
        """Every batch since the engine's start, or since it was empty, is applied."""
        return self._belief.complete

    @property
    def calm(self) -> bool:
        """Nothing is under way: of time it only notices silence, for which a look now and then
        is enough."""
        in_sync = self._belief.state in IN_SYNC
        return in_sync and self._asking.question is None and self._waiting.first is None

    @property
    def sequence(self) -> int | None:
        """The last number applied of this engine process; not yet that of a batch under way."""
        if self._applying:
            return self._sequence_before
        mark = self._progress.mark
        return None if mark is None else mark.sequence

    @property
    def pending_bytes(self) -> int:
        """Memory of the live batches that wait for a replay."""
        return self._waiting.queue_bytes

    @property
    def heard_at(self) -> float:
        """When the engine was last heard, on the clock of the inputs."""
        return self._contact.heard_at

    # -- before the first contact -------------------------------------------------------------

    def resume(self, checkpoint: Checkpoint) -> None:
        """The index holds what it held at `checkpoint`, as if those batches had been applied.

        Nothing of it is believed before the engine's replay from that number has proved that the
        same process answers; where it cannot, the source is cleared and starts from 0. Raises
        ValueError once there was contact.
        """
        if self._contact.stands or self._belief.state is not SourceState.CONNECTING:
            raise ValueError("a source can be resumed only before its first contact")
        self._progress.resume(checkpoint.sequence, checkpoint.digest)
        self._belief.dirty = True
        self._belief.complete = checkpoint.complete
        self._belief.why = "resumed, and the engine is the same"

    # -- the connection -----------------------------------------------------------------------

    def connected(self, now: float) -> Effects:
        """A new connection to the engine stands; its live batches follow."""
        now = self._clock(now)
        if not self._contact.stands:
            self._connect(now)
        return self._pump(now)

    def disconnected(self, now: float) -> Effects:
        """The connection is gone; none of its batches will follow."""
        if self._contact.stands:
            self._hang_up(self._clock(now))
        return self._belief.flush()

    def replay_port_open(self, now: float) -> Effects:
        """Somebody listens on the replay port that was found closed."""
        self._asking.port_closed = False
        self._asking.ended_at = self._clock(now)
        if self._belief.state in IN_SYNC and self._asking.question is None:
            self._ask(now, refill=self._asking.older_wanted and not self._belief.complete)
        return self._belief.flush()

    def tick(self, now: float) -> Effects:
        """Time has passed; call it a few times a second."""
        now = self._clock(now)
        if self._belief.state is SourceState.LOST:
            self._tick_lost(now)
        else:
            parts = (self._belief, self._contact, self._asking, self._waiting)
            due = self._patience.due(*parts, now)
            if due is not None:
                self._do(due, now)
        return self._pump(now)

    # -- batches ------------------------------------------------------------------------------

    def live(self, sequence: int, payload: bytes, now: float) -> Effects:
        """A batch from PUB. Data is contact, even where no one said `connected`."""
        now = self._clock(now)
        if not self._contact.stands:
            self._connect(now)
        high = self._contact.live_high
        self._contact.live(sequence, now)
        self._hear(now)
        if self._belief.state is SourceState.LOST:
            return self._belief.flush()
        mark = self._progress.mark
        if high is not None and sequence <= high:
            if mark is not None and mark.same(sequence, payload):
                return self._belief.flush()
            self._restart_from(sequence, high, now)
        elif self._unproven and mark is not None and sequence < mark.sequence:
            self._restart_from(sequence, mark.sequence, now)
        elif high is not None and sequence > max(high + 1, self._progress.expected):
            self._belief.owe(Noticed(Notice.GAP))
        self._waiting.push_live(sequence, payload, now)
        effects = self._pump(now, arrived=sequence)
        if self._waiting.queue_bytes > self._limits.queue_bytes and not self._applying:
            return effects + self._overflow(now)
        return effects

    def replay_put(self, ask: int, now: float) -> Effects:
        """The question is on its way: from now on an answer is expected."""
        question = self._asking.under_way(ask)
        if question is not None:
            question.heard_at = self._clock(now)
        return ()

    def replayed(self, ask: int, sequence: int, payload: bytes, now: float) -> Effects:
        """One answer to a question, in order. Answers to an earlier question are ignored."""
        question = self._asking.under_way(ask)
        if question is None:
            return ()
        question.heard_at = now = self._clock(now)
        if self._belief.state is SourceState.LOST:
            self._hear(now)
            return self._belief.flush()
        self._hear(now)
        question.highest = sequence
        mark = self._progress.mark
        if question.contradicted(sequence, payload) or (
            mark is not None and mark.contradicts(sequence, payload)
        ):
            self._other_engine(f"its batch {sequence} is not the one applied", now)
            return self._pump(now)
        if question.check and question.proof is not None and sequence == question.proof.sequence:
            self._asking.unreadable_is_usual = True
        self._first_answer(question, sequence)
        self._waiting.push_replayed(sequence, payload)
        return self._pump(now)

    def replay_ended(self, ask: int, now: float) -> Effects:
        """The engine has sent all that it holds."""
        question = self._asking.under_way(ask)
        if question is None:
            return ()
        now = self._clock(now)
        self._asking.end(now)
        if self._belief.state is SourceState.LOST:
            self._hear(now)
            return self._belief.flush()
        self._hear(now)
        if question.proof is not None and question.highest < question.proof.sequence:
            self._other_engine("it has not come as far as what was applied", now)
            return self._pump(now)
        if not question.answered:
            self._nothing_to_replay(question)
        if question.start == 0:
            self._asking.all_answered()
        if question.live_high is not None:
            self._asking.answered_up_to = question.live_high
        holes = question.holes or (self._hole() is not None and not self._worth_asking())
        self._belief.owe(Noticed(Notice.REPLAY_PARTIAL if holes else Notice.REPLAY_COMPLETE))
        return self._pump(now)

    def replay_failed(self, ask: int, *, port_closed: bool, now: float) -> Effects:
        """No answer, or not all of it, after all attempts. `port_closed`: nobody listens there."""
        if self._asking.under_way(ask) is None:
            return ()
        self._asking.port_closed = port_closed
        self._belief.owe(Noticed(Notice.NO_REPLAY_PORT if port_closed else Notice.REPLAY_FAILED))
        why = "the replay port is closed" if port_closed else "the replay failed"
        self._no_answer(why, self._clock(now))
        return self._pump(now)

    def applied(
        self,
        *,
        cleared: bool,
        loss: ClearReason | None,
        now: float,
        unreadable: bool = False,
        left_out: bool = False,
    ) -> Effects:
        """The result of the last `Apply`: it held AllBlocksCleared; it lost something; a part
        of it could not be read; blocks were left out, because the index is full."""
        self._applying = False
        if loss is not None:
            self._belief.clear(loss)
            self._belief.why = "a batch could not be read without loss"
        elif cleared:
            self._belief.complete = True
            self._belief.why = "the engine emptied its cache"
        if left_out:
            self._belief.complete = False
            self._belief.why = "the index is full"
        if unreadable and not self._asking.unreadable_is_usual:
            self._asking.check_wanted = self._progress.mark
        return self._pump(self._clock(now))

    def discard(self, reason: ClearReason, now: float) -> Effects:
        """What is held cannot be right: empty the source, and go on with what follows."""
        if self._belief.dirty:
            self._belief.clear(reason)
            self._belief.why = f"cleared ({reason})"
        return self._pump(self._clock(now))

    def failed(self, now: float) -> Effects:
        """The driver failed, so what was applied is not known: start over on a new connection."""
        self._applying = False
        self._hang_up(self._clock(now))
        self._belief.owe(Reconnect())
        self._belief.clear(ClearReason.ERROR)
        self._forget()
        self._belief.become(SourceState.SYNCING, "this process failed to follow it")
        self._belief.doubt()
        return self._belief.flush()
