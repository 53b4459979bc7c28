"""One source's driver: turns messages into inputs of its state machine, and effects into deeds.

Owns what belongs to one source: its `SourceSync`, its part of the index, its metrics, its log
lines. Knows no socket: those are reached through `Line`.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.index import Applied
from aibrix_extproc.index.results import FULL
from aibrix_extproc.kvevents.checkpoint import Checkpoint, digest_of
from aibrix_extproc.kvevents.effects import (
    Apply,
    AskReplay,
    CancelReplay,
    Clear,
    ClearReason,
    Effects,
    Notice,
    Noticed,
    Reconnect,
    SourceState,
    StaleChanged,
    StateChanged,
)
from aibrix_extproc.kvevents.skips import UNREADABLE, Skips
from aibrix_extproc.kvevents.source import SourceSync, SyncLimits
from aibrix_extproc.kvevents.tap import SILENT, Tap
from aibrix_extproc.kvevents.wire import BadFrame, BadFrames, parse_live
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_REPLAY_RESULTS: Final = (
    Notice.REPLAY_COMPLETE,
    Notice.REPLAY_PARTIAL,
    Notice.REPLAY_FAILED,
    Notice.NO_REPLAY_PORT,
)
_MAYBE_ANOTHER_ENGINE: Final = (ClearReason.RESTART, ClearReason.UNPROVEN, ClearReason.LOST)
_GOOD_STATES: Final = (SourceState.EXACT, SourceState.SYNCING)


class _Result(NamedTuple):
    """What applying one batch came to."""

    cleared: bool
    loss: ClearReason | None
    unreadable: bool
    left_out: bool = False
    """Blocks were left out, because the index is full."""


class EventIndex(Protocol):
    """What event sync needs of the index."""

    def apply(self, source: int, payload: bytes) -> Applied: ...
    def clear_source(self, source: int) -> None: ...


class Warm(Protocol):
    """What was saved of a source by another process."""

    def restore(self, source: int) -> Checkpoint | None:
        """Import it into the index; None where it cannot be used, and the source is empty."""
        ...


class Line(Protocol):
    """The sockets of one source, used by its reader thread alone."""

    def ask(self, ask: int, start: int) -> None: ...
    def cancel(self, ask: int) -> None: ...
    def reconnect(self) -> None: ...


class Feed:
    """One source. Its inputs come from one reader thread; `stop` may come from any."""

    def __init__(
        self,
        source: int,
        pod: str,
        rank: Rank,
        index: EventIndex,
        settings: Settings,
        metrics: Metrics,
        on_clear: Callable[[int], None],
        on_new_engine: Callable[[str], None] = lambda pod: None,
        tap: Tap = SILENT,
    ) -> None:
        """`on_new_engine(pod)`: for all that is known, another engine process is behind it now."""
        self.source = source
        self.pod = pod
        self.rank = rank
        self.tap = tap
        self.lag_s: float | None = None
        """Between the engine's time stamp on the last live batch and its arrival here."""
        self._index = index
        self._metrics = metrics
        self._on_clear = on_clear
        self._on_new_engine = on_new_engine
        self._skips = Skips(self._name, metrics)
        self._log = StateLog(logger)
        self._lock = threading.Lock()
        self._stopped = False
        self._labels = (pod, str(rank.rank))
        limits = SyncLimits(
            queue_bytes=settings.kv_queue_bytes,
            idle_probe_s=settings.kv_idle_probe_s,
            stale_after_s=settings.kv_stale_after_s,
            lost_after_s=settings.kv_lost_after_s,
        )
        self.sync = SourceSync(
            limits, has_replay=rank.replay_endpoint is not None, now=time.monotonic()
        )
        self._checkpoint: Checkpoint | None = None
        self._batches = metrics.batches.labels(*self._labels)
        self._rare = (
            metrics.gaps,
            metrics.restarts,
            metrics.disconnects,
            metrics.handshake_failures,
        )
        for counter in self._rare:
            counter.labels(*self._labels)  # at 0, so that the first one is a rise
        self._lag = metrics.source_lag.labels(*self._labels)
        self._stale = metrics.source_stale.labels(*self._labels)
        self._waiting = metrics.source_waiting_bytes.labels(*self._labels)
        self._waiting_bytes = 0
        for state in SourceState:
            metrics.source_state.labels(*self._labels, state).set(state is self.sync.state)

    # -- inputs, from the reader thread -------------------------------------------------------

    def restore(self, warm: Warm) -> None:
        """Take over what was saved, before the first contact; the engine must prove it then.

        `stop` waits for it, so that nothing is imported into a source that is given up.
        """
        with self._lock:
            if self._stopped:
                return
            try:
                checkpoint = warm.restore(self.source)
            except Exception:
                logger.exception("%s: what was saved of it is not used", self._name)
                return
            if checkpoint is not None:
                self.sync.resume(checkpoint)
                self._checkpoint = checkpoint

    def connected(self, line: Line, now: float) -> None:
        self._log.changed(f"{self._name}: its event port", "ok")
        self.tap.contact(True)
        self._run(line, now, self.sync.connected(now))

    def disconnected(self, line: Line, now: float) -> None:
        with self._lock:
            if not self._stopped:
                self._metrics.disconnects.labels(*self._labels).inc()
        self.tap.contact(False)
        self._run(line, now, self.sync.disconnected(now))

    def tick(self, line: Line, now: float) -> None:
        self._run(line, now, self.sync.tick(now))

    def live(self, line: Line, frames: Sequence[bytes], now: float) -> None:
        """One message of the subscription; one that is no batch is counted and dropped."""
        try:
            batch = parse_live(frames)
        except BadFrames as error:
            self.bad_frames(error.reason)
            return
        self._count_batch()
        self._run(line, now, self.sync.live(batch.sequence, batch.payload, now))

    def replayed(self, line: Line, ask: int, sequence: int, payload: bytes, now: float) -> None:
        self._count_batch()
        self._run(line, now, self.sync.replayed(ask, sequence, payload, now))

    def replay_ended(self, line: Line, ask: int, now: float) -> None:
        self._run(line, now, self.sync.replay_ended(ask, now))

    def replay_failed(self, line: Line, ask: int, *, port_closed: bool, now: float) -> None:
        self._run(line, now, self.sync.replay_failed(ask, port_closed=port_closed, now=now))

    def replay_put(self, ask: int, now: float) -> None:
        """The question is on its way."""
        self.sync.replay_put(ask, now)

    def replay_port_open(self, line: Line, now: float) -> None:
        """Somebody listens on the replay port that was closed."""
        self._run(line, now, self.sync.replay_port_open(now))

    def discard(self, line: Line, reason: ClearReason, now: float) -> None:
        """What is held cannot be right: empty the source, and go on."""
        self._run(line, now, self.sync.discard(reason, now))

    def failed(self, line: Line, now: float) -> None:
        """This process failed while it served the source: empty it, and connect anew."""
        self._run(line, now, self.sync.failed(now))

    def handshake_failed(self, why: str) -> None:
        """Whoever listens on the event port does not speak with us."""
        with self._lock:
            if not self._stopped:
                self._metrics.handshake_failures.labels(*self._labels).inc()
                self._log.changed(
                    f"{self._name}: its event port",
                    "no handshake",
                    f"{why}: is it an engine's event port, and are the CURVE keys right?",
                )

    def fault(self) -> None:
        """This process failed where it should not."""
        self._metrics.faults.labels("event_sync").inc()

    def bad_frames(self, reason: BadFrame) -> None:
        self._skips.message(reason)

    def at_checkpoint(self, read: Callable[[int], T]) -> tuple[Checkpoint, T] | None:
        """`read(source)` while no batch is being applied, and the batch that stands for it.

        None where no batch is known to stand for what the index holds: nothing was applied yet,
        it has just been cleared, or it is followed no more. From any thread; its own reader
        waits meanwhile, so `read` must be short.
        """
        with self._lock:
            if self._stopped or self._checkpoint is None:
                return None
            return self._checkpoint, read(self.source)

    def stop(self) -> None:
        """Nothing is applied or counted for this source after this returns.

        Waits at most for the batch that is being applied.
        """
        with self._lock:
            self._stopped = True
            known = self._metrics
            for counter in (known.batches, *self._rare):
                counter.remove(*self._labels)
            for gauge in (known.source_lag, known.source_stale, known.source_waiting_bytes):
                gauge.remove(*self._labels)
            for result in _REPLAY_RESULTS:
                self._metrics.replays.remove(*self._labels, result)
            for state in SourceState:
                self._metrics.source_state.remove(*self._labels, state)

    # -- effects ------------------------------------------------------------------------------

    def _run(self, line: Line, now: float, effects: Effects) -> None:
        """Carry out effects until the state machine wants nothing more."""
        self._show_waiting()
        while effects:
            result = self._carry_out_all(effects, line)
            if result is None:
                return
            effects = self.sync.applied(
                cleared=result.cleared,
                loss=result.loss,
                unreadable=result.unreadable,
                left_out=result.left_out,
                now=now,
            )

    def _show_waiting(self) -> None:
        waiting_bytes = self.sync.pending_bytes
        if waiting_bytes != self._waiting_bytes:
            self._waiting_bytes = waiting_bytes
            self._waiting.set(waiting_bytes)

    def _carry_out_all(self, effects: Effects, line: Line) -> "_Result | None":
        """The result of the batch applied at the end; None where there was none.

        The lock is held for one batch at a time, so that `stop` need not wait for a whole queue.
        """
        with self._lock:
            if self._stopped:
                return None
            for effect in effects:
                self.tap.effect(effect)
                if isinstance(effect, Apply):
                    return self._apply(effect)
                self._carry_out(effect, line)
        return None

    def _apply(self, effect: Apply) -> "_Result":
        """Give a batch to the index. An error of ours is a loss of this source, and no more."""
        self._checkpoint = None
        try:
            applied = self._index.apply(self.source, effect.payload)
        except Exception:
            self.fault()
            logger.exception("%s: batch %d could not be applied", self._name, effect.sequence)
            return _Result(False, ClearReason.ERROR, False)
        self.tap.applied(effect.sequence, applied)
        if applied.stored:
            self._metrics.blocks_stored.inc(applied.stored)
        if applied.removed:
            self._metrics.blocks_removed.inc(applied.removed)
        if applied.skipped:
            self._skips.events(applied.skipped)
        if effect.live and applied.timestamp is not None:
            self.lag_s = max(0.0, time.time() - applied.timestamp)
            self._lag.set(self.lag_s)
        if applied.cleared:
            self._on_clear(self.source)
            self._show_full(False)
        left_out = FULL in applied.skipped
        if left_out:
            self._show_full(True)
        unreadable = bool(applied.skipped) and not UNREADABLE.isdisjoint(applied.skipped)
        if applied.lossy:
            return _Result(applied.cleared > 0, ClearReason.LOSSY, unreadable)
        complete = (self.sync.complete or applied.cleared > 0) and not left_out
        self._checkpoint = Checkpoint(effect.sequence, digest_of(effect.payload), complete)
        return _Result(applied.cleared > 0, None, unreadable, left_out)

    def _show_full(self, full: bool) -> None:
        self._log.changed(
            f"{self._name}: its part of the index",
            "full" if full else "ok",
            "AIBRIX_KV_INDEX_MAX_BYTES is reached: it takes no new block until it is cleared"
            if full
            else "cleared",
        )

    def _carry_out(
        self,
        effect: Clear
        | AskReplay
        | CancelReplay
        | Reconnect
        | Noticed
        | StaleChanged
        | StateChanged,
        line: Line,
    ) -> None:
        match effect:
            case Clear(reason):
                self._checkpoint = None
                self._index.clear_source(self.source)
                self._show_full(False)
                self._metrics.source_clears.labels(reason).inc()
                self._on_clear(self.source)
                if reason in _MAYBE_ANOTHER_ENGINE:
                    self._on_new_engine(self.pod)
            case AskReplay(ask, start):
                line.ask(ask, start)
            case CancelReplay(ask):
                line.cancel(ask)
            case Reconnect():
                line.reconnect()
            case Noticed(what):
                self._count(what)
            case StaleChanged(stale, silent_s):
                self._stale.set(stale)
                self._log.changed(
                    f"{self._name}: its silence", "stale" if stale else "ok", f"{silent_s:.0f} s"
                )
            case StateChanged(before, after, why):
                self._changed(before, after, why)

    def _count_batch(self) -> None:
        with self._lock:
            if not self._stopped:
                self._batches.inc()

    def _count(self, what: Notice) -> None:
        match what:
            case Notice.GAP:
                self._metrics.gaps.labels(*self._labels).inc()
            case Notice.RESTART:
                self._metrics.restarts.labels(*self._labels).inc()
            case _:
                self._metrics.replays.labels(*self._labels, what).inc()

    def _changed(self, before: SourceState, after: SourceState, why: str) -> None:
        self._metrics.source_state.labels(*self._labels, before).set(0)
        self._metrics.source_state.labels(*self._labels, after).set(1)
        level = logging.INFO if after in _GOOD_STATES else logging.WARNING
        logger.log(level, "%s: %s → %s (%s)", self._name, before, after, why)

    @property
    def _name(self) -> str:
        return f"{self.pod} rank {self.rank.rank}"
