"""The sockets of one source: its subscription, its replay, the watch on a closed replay port.

Owns them, and turns what they bring into inputs of the source's feed. Knows neither threads nor
other sources: it lives on a `Desk`, whose one thread calls it.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import zmq

from aibrix_extproc.kvevents.effects import ClearReason
from aibrix_extproc.kvevents.feed import Feed
from aibrix_extproc.kvevents.replay import PortWatch, Question, Replay, ReplayFailed
from aibrix_extproc.kvevents.sockets import (
    HANDSHAKE_FAILED,
    Context,
    Link,
    LinkEvent,
    LinkOptions,
    Switchboard,
)
from aibrix_extproc.kvevents.wire import BadFrame, ReplayBatch, ReplayEnd
from aibrix_extproc.settings import Settings

logger = logging.getLogger(__name__)

_BATCHES_A_TURN: Final = 64
"""Of one source, before the next one has its turn."""
_DRAIN_LIMIT: Final = 1_000_000
_OPEN_AGAIN_S: Final = 2.0
"""After a subscription could not be opened: others may have freed their sockets by then."""


class Desk(Protocol):
    """The thread that a line lives on, as its line sees it."""

    context: Context
    board: Switchboard
    options: LinkOptions
    settings: Settings

    def want_replay(self, line: "SourceLine", question: Question) -> None: ...
    def replay_over(self, line: "SourceLine") -> None: ...


class SourceLine:
    """The sockets of one source: its subscription, and its replay while one is under way."""

    def __init__(self, feed: Feed, endpoint: str, reader: Desk) -> None:
        self.feed = feed
        self._endpoint = endpoint
        self._reader = reader
        self._link: Link | None = None
        self._replay: Replay | None = None
        self._watch: PortWatch | None = None
        """While the replay port is closed."""
        self._open_at: float | None = None
        """When to try again to subscribe; None where there is no need."""

    def open(self, now: float) -> None:
        """Subscribe. What cannot be is logged once and tried again; its source is LOST in time."""
        reader = self._reader
        try:
            self._link = Link(
                reader.context,
                zmq.SUB,
                self._endpoint,
                reader.board,
                self._subscription_readable,
                reader.options,
            )
        except zmq.ZMQError as error:
            if self._open_at is None:
                logger.error("%s: cannot subscribe to %s: %s", self.feed.pod, self._endpoint, error)
            self._open_at = now + _OPEN_AGAIN_S
        else:
            self._open_at = None

    def close(self) -> None:
        """All its sockets, at once."""
        self._end_replay()
        self._end_watch()
        if self._link is not None:
            self._link.close()
            self._link = None

    def tick(self, now: float) -> None:
        """What is due with time: the replay's time-out, the source's own clock."""
        self._guarded(self._tick, now)

    def discard(self, reason: ClearReason, now: float) -> None:
        """What is held cannot be right."""
        self._guarded(lambda now: self.feed.discard(self, reason, now), now)

    # -- deeds of the feed --------------------------------------------------------------------

    def ask(self, ask: int, start: int) -> None:
        """Begin a replay, or queue it where enough are under way."""
        self._end_watch()
        endpoint = self.feed.rank.replay_endpoint or ""
        timeout_s = self._reader.settings.kv_replay_timeout_s
        self._reader.want_replay(self, Question(ask, endpoint, start, timeout_s))

    def cancel(self, ask: int) -> None:
        """Answers to this question are not wanted any more."""
        self._end_replay()

    def reconnect(self) -> None:
        """A new subscription in the place of the old one, whose unread batches are dropped."""
        self.close()
        self.open(time.monotonic())

    def begin_replay(self, question: Question, now: float) -> None:
        """Put the question. An endpoint that is none counts as a closed port."""
        self._guarded(lambda now: self._begin_replay(question, now), now)

    def _begin_replay(self, question: Question, now: float) -> None:
        reader = self._reader
        try:
            self._replay = Replay(
                reader.context, reader.board, self._replay_readable, question, reader.options, now
            )
            self._replay.tap = self.feed.tap
        except zmq.ZMQError as error:
            logger.error("%s: cannot ask %s: %s", self.feed.pod, question.endpoint, error)
            self._fail_replay(question, ReplayFailed(str(error), port_closed=True), now)
        else:
            self.feed.replay_put(question.ask, now)

    @property
    def receives(self) -> bool:
        """Whether replies come to its replay, or should come at once."""
        return self._replay is not None and self._replay.receives(time.monotonic())

    @property
    def calm(self) -> bool:
        """Whether `tick` may be called less often."""
        return self._replay is None and self._open_at is None and self.feed.sync.calm

    # -- what can be read ---------------------------------------------------------------------

    def _subscription_readable(self, now: float) -> None:
        self._guarded(self._read_subscription, now)

    def _replay_readable(self, now: float) -> None:
        self._guarded(self._read_replay, now)

    def _guarded(self, action: Callable[[float], None], now: float) -> None:
        """An error in one source must not end the thread that serves the others."""
        try:
            action(now)
        except Exception:
            self.feed.fault()
            logger.exception("%s: event sync failed, it starts over", self.feed.pod)
            try:
                self.feed.failed(self, now)
            except Exception:
                logger.exception("%s: it could not start over", self.feed.pod)

    def _read_subscription(self, now: float) -> None:
        """Read a turn of live batches, and never mix those of two connections.

        The monitor is read after the batches: what tells of a new connection is there before
        its first batch is. Batches that may be of either connection are dropped; the question
        that follows a new connection brings them again.
        """
        link = self._link
        if link is None:
            return
        messages = link.drain(_BATCHES_A_TURN)
        events = link.events()
        if LinkEvent.DOWN in events:
            messages += link.drain(_DRAIN_LIMIT)
            events += link.events()
        if LinkEvent.DOWN in events:
            if LinkEvent.UP not in events[events.index(LinkEvent.DOWN) :]:
                self._give(messages, link, now)
            else:
                self._drop(messages, now)
            messages = []
        for event in events:
            if event is LinkEvent.UP:
                self.feed.connected(self, now)
            elif event is LinkEvent.DOWN:
                self.feed.disconnected(self, now)
            elif event in HANDSHAKE_FAILED:
                self.feed.handshake_failed(event.name.lower())
        self._give(messages, link, now)

    def _give(self, messages: Sequence[list[bytes]], link: Link, now: float) -> None:
        for given, frames in enumerate(messages):
            if self._link is not link:
                self._drop(messages[given:], now)
                return
            self.feed.tap.message(frames, now)
            self.feed.live(self, frames, now)

    def _drop(self, messages: Iterable[list[bytes]], now: float) -> None:
        """They may be of another engine process than those that follow."""
        for frames in messages:
            self.feed.tap.message(frames, now)

    def _read_replay(self, now: float) -> None:
        replay = self._replay
        if replay is None:
            return
        ask = replay.question.ask
        for outcome in replay.read(_BATCHES_A_TURN, now):
            if isinstance(outcome, ReplayBatch):
                self.feed.replayed(self, ask, outcome.sequence, outcome.payload, now)
            elif isinstance(outcome, BadFrame):
                self.feed.bad_frames(outcome)
            elif isinstance(outcome, ReplayEnd):
                self._end_replay()
                self.feed.replay_ended(self, ask, now)
            else:
                self._fail_replay(replay.question, outcome, now)
            if self._replay is not replay:
                return

    def _tick(self, now: float) -> None:
        if self._open_at is not None and now >= self._open_at:
            self.open(now)
        elif self._link is not None and self._link.dead:
            self._link.close()
            self.open(now)
        if self._watch is not None:
            self._watch.tick()
        replay = self._replay
        if replay is not None and (failed := replay.check(now)) is not None:
            self._fail_replay(replay.question, failed, now)
        self.feed.tick(self, now)

    def _fail_replay(self, question: Question, failed: ReplayFailed, now: float) -> None:
        logger.debug("%s: replay from %d: %s", self.feed.pod, question.start, failed.why)
        self._end_replay()
        if failed.port_closed:
            self._begin_watch(question.endpoint)
        self.feed.replay_failed(self, question.ask, port_closed=failed.port_closed, now=now)

    def _begin_watch(self, endpoint: str) -> None:
        """Learn when the replay port opens. One that cannot be is tried with the next contact."""
        reader = self._reader
        self._end_watch()
        with contextlib.suppress(zmq.ZMQError):
            self._watch = PortWatch(
                reader.context, reader.board, self._replay_port_open, endpoint, reader.options
            )

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _replay_port_open(self, now: float) -> None:
        self._end_watch()
        self._guarded(lambda now: self.feed.replay_port_open(self, now), now)

    def _end_replay(self) -> None:
        if self._replay is not None:
            self._replay.close()
            self._replay = None
        self._reader.replay_over(self)
