"""The threads that read all event streams: sockets in, inputs of feeds out.

Owns the threads, and which source is read by which. Knows neither pods (beyond a name for logs
and metrics) nor what a batch means.

A replay is read by the thread that owns the source, through the same poller: ZMQ's own thread
fetches the replies as fast as they come, into a queue without a limit, so that the engine loses
none; this thread takes a few of them at a time between the live batches of all sources.
"""

import contextlib
import logging
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import zmq

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.kvevents.checkpoint import Checkpoint
from aibrix_extproc.kvevents.feed import EventIndex, Feed
from aibrix_extproc.kvevents.replay import Question, Replay, ReplayFailed
from aibrix_extproc.kvevents.sockets import Context, Link, LinkEvent, Switchboard, new_context
from aibrix_extproc.kvevents.wire import BadFrame, ReplayBatch, ReplayEnd
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings

logger = logging.getLogger(__name__)

_BATCHES_A_TURN: Final = 64
"""Of one source, before the next one has its turn."""
_TICK_S: Final = 0.1
_REPLAYS_AT_ONCE: Final = 8
"""Per thread: their replies wait in memory, up to an engine's whole buffer each."""
_DRAIN_LIMIT: Final = 1_000_000
_OPEN_AGAIN_S: Final = 2.0
"""After a subscription could not be opened: others may have freed their sockets by then."""


class SourceLine:
    """The sockets of one source: its subscription, and its replay while one is under way."""

    def __init__(self, feed: Feed, endpoint: str, reader: "Reader") -> None:
        self.feed = feed
        self._endpoint = endpoint
        self._reader = reader
        self._link: Link | None = None
        self._replay: Replay | None = None
        self._open_at: float | None = None
        """When to try again to subscribe; None where there is no need."""

    def open(self, now: float) -> None:
        """Subscribe. What cannot be is logged once and tried again; its source is LOST in time."""
        reader = self._reader
        try:
            self._link = Link(
                reader.context, zmq.SUB, self._endpoint, reader.board, self._subscription_readable
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
        if self._link is not None:
            self._link.close()
            self._link = None

    def tick(self, now: float) -> None:
        """What is due with time: the replay's time-out, the source's own clock."""
        self._guarded(self._tick, now)

    # -- deeds of the feed --------------------------------------------------------------------

    def ask(self, ask: int, start: int) -> None:
        """Begin a replay, or queue it where enough are under way."""
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
                reader.context, reader.board, self._replay_readable, question, now
            )
        except zmq.ZMQError as error:
            logger.error("%s: cannot ask %s: %s", self.feed.pod, question.endpoint, error)
            self._fail_replay(question, ReplayFailed(str(error), port_closed=True), now)

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
            if LinkEvent.UP not in events[events.index(LinkEvent.DOWN) :]:
                self._give(messages, link, now)
            messages = []
        for event in events:
            if event is LinkEvent.UP:
                self.feed.connected(self, now)
            elif event is LinkEvent.DOWN:
                self.feed.disconnected(self, now)
        self._give(messages, link, now)

    def _give(self, messages: Iterable[list[bytes]], link: Link, now: float) -> None:
        for frames in messages:
            if self._link is not link:
                return
            self.feed.live(self, frames, now)

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
        replay = self._replay
        if replay is not None and (failed := replay.check(now)) is not None:
            self._fail_replay(replay.question, failed, now)
        self.feed.tick(self, now)

    def _fail_replay(self, question: Question, failed: ReplayFailed, now: float) -> None:
        logger.debug("%s: replay from %d: %s", self.feed.pod, question.start, failed.why)
        self._end_replay()
        self.feed.replay_failed(self, question.ask, port_closed=failed.port_closed, now=now)

    def _end_replay(self) -> None:
        if self._replay is not None:
            self._replay.close()
            self._replay = None
        self._reader.replay_over(self)


class Reader(threading.Thread):
    """One thread, and the sources it reads."""

    def __init__(self, number: int, context: Context, settings: Settings) -> None:
        super().__init__(name=f"kv-events-{number}", daemon=True)
        self.context = context
        self.settings = settings
        self.board = Switchboard()
        self.sources = 0
        """Kept by the subscriber, to spread the sources evenly."""
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_in, self._wake_out = socket.socketpair()
        self._lines: dict[int, SourceLine] = {}
        self._waiting: deque[tuple[SourceLine, Question]] = deque()
        self._replaying: set[SourceLine] = set()
        self._closing = False
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self.board.plug(self._wake_out.fileno(), self._woken)

    # -- from other threads -------------------------------------------------------------------

    def add(self, feed: Feed, endpoint: str) -> None:
        """Subscribe, soon."""
        self._command(lambda: self._add(feed, endpoint))

    def remove(self, source: int) -> None:
        """Close the sockets of a source, soon; its feed is stopped by now."""
        self._command(lambda: self._remove(source))

    def close(self) -> None:
        """End the thread after the turn it is in."""
        self._closing = True
        self._wake()

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.put(command)
        self._wake()

    def _wake(self) -> None:
        """A full pipe holds wake-ups enough, and a closed one has nobody to wake."""
        with contextlib.suppress(OSError):
            self._wake_in.send(b"\0")

    # -- replays ------------------------------------------------------------------------------

    def want_replay(self, line: SourceLine, question: Question) -> None:
        """Put the question when it is its turn."""
        self._waiting.append((line, question))

    def replay_over(self, line: SourceLine) -> None:
        """The line's question, under way or waiting, is no more."""
        self._replaying.discard(line)
        if self._waiting:
            self._waiting = deque(w for w in self._waiting if w[0] is not line)

    def _begin_replays(self, now: float) -> None:
        while self._waiting and len(self._replaying) < _REPLAYS_AT_ONCE:
            line, question = self._waiting.popleft()
            self._replaying.add(line)
            line.begin_replay(question, now)

    # -- the thread ---------------------------------------------------------------------------

    def run(self) -> None:
        next_tick = time.monotonic()
        try:
            while not self._closing:
                ready = self.board.poll(_TICK_S)
                now = time.monotonic()
                self._run_commands()
                for readable in ready:
                    if (handler := self.board.handler(readable)) is not None:
                        handler(now)
                if now >= next_tick:
                    next_tick = now + _TICK_S
                    for line in self._lines.values():
                        line.tick(now)
                self._begin_replays(now)
        finally:
            for source in list(self._lines):
                self._remove(source)
            self._wake_in.close()
            self._wake_out.close()

    def _woken(self, _now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_out.recv(4096)

    def _run_commands(self) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command()

    def _add(self, feed: Feed, endpoint: str) -> None:
        line = self._lines[feed.source] = SourceLine(feed, endpoint, self)
        line.open(time.monotonic())

    def _remove(self, source: int) -> None:
        line = self._lines.pop(source, None)
        if line is None:
            return
        try:
            line.close()
        except Exception:  # the thread serves others too, and the context waits for all sockets
            logger.exception("%s: its sockets could not be closed", line.feed.pod)


class Subscriber:
    """All event streams. `add` and `remove` come from one thread; views from any."""

    def __init__(
        self,
        index: EventIndex,
        settings: Settings,
        metrics: Metrics,
        on_clear: Callable[[int], None],
        on_new_engine: Callable[[str], None] = lambda pod: None,
    ) -> None:
        """Starts its threads. `on_clear(source)` and `on_new_engine(pod)` are called from them."""
        self._index = index
        self._settings = settings
        self._metrics = metrics
        self._on_clear = on_clear
        self._on_new_engine = on_new_engine
        self._context = new_context()
        self._feeds: dict[int, tuple[Feed, Reader]] = {}
        self._readers = [
            Reader(number, self._context, settings)
            for number in range(settings.kv_subscriber_threads)
        ]
        for reader in self._readers:
            reader.start()

    def add(self, source: int, name: str, rank: Rank, resume: Checkpoint | None = None) -> None:
        """Follow a source; `name` is its pod's, for logs and metrics.

        `resume`: the index holds already what the source held at that batch. It is kept where
        the engine's replay proves that the same process answers, else cleared.

        Raises ValueError for a rank without an event endpoint.
        """
        if rank.event_endpoint is None:
            raise ValueError(f"{name} rank {rank.rank} sends no events")
        feed = Feed(
            source,
            name,
            rank,
            self._index,
            self._settings,
            self._metrics,
            self._on_clear,
            resume,
            self._on_new_engine,
        )
        reader = min(self._readers, key=lambda r: r.sources)
        reader.sources += 1
        self._feeds[source] = (feed, reader)
        reader.add(feed, rank.event_endpoint)

    def remove(self, source: int) -> None:
        """Follow it no more: when this returns, nothing of it is applied, and its metrics are gone.

        Its sockets are closed by their own thread at its next turn. An unknown source is ignored.
        """
        entry = self._feeds.pop(source, None)
        if entry is None:
            return
        feed, reader = entry
        feed.stop()
        reader.sources -= 1
        reader.remove(source)

    def feed(self, source: int) -> Feed | None:
        """What is known of a source that is followed."""
        entry = self._feeds.get(source)
        return None if entry is None else entry[0]

    def stop(self) -> None:
        """Nothing is applied any more when this returns; `close` must follow.

        Waits for one batch of each source at most.
        """
        for feed, _reader in self._feeds.values():
            feed.stop()
        self._feeds.clear()

    def close(self) -> None:
        """End all threads and close all sockets."""
        self.stop()
        for reader in self._readers:
            reader.close()
        for reader in self._readers:
            reader.join()
        self._context.term()
