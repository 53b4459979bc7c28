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
from collections.abc import Callable
from typing import Final

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.kvevents.effects import ClearReason
from aibrix_extproc.kvevents.feed import EventIndex, Feed, Warm
from aibrix_extproc.kvevents.line import SourceLine
from aibrix_extproc.kvevents.recent import Recent
from aibrix_extproc.kvevents.replay import Question
from aibrix_extproc.kvevents.sockets import (
    Context,
    LinkOptions,
    Switchboard,
    link_options,
    new_context,
)
from aibrix_extproc.kvevents.yielding import give_way
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings

logger = logging.getLogger(__name__)

_TICK_S: Final = 0.1
_CALM_TICKS: Final = 4
"""Of so many ticks a source where nothing is under way gets one: with a few hundred of them, ten a
second each were most of what an idle server cost."""
_REPLAYS_AT_ONCE: Final = 8
"""Per thread: their replies wait in memory, up to an engine's whole buffer each. One that gets no
replies is not counted, so that engines which do not answer hold up no others."""


class Reader(threading.Thread):
    """One thread, and the sources it reads."""

    def __init__(
        self, number: int, context: Context, settings: Settings, options: LinkOptions
    ) -> None:
        super().__init__(name=f"kv-events-{number}", daemon=True)
        self.context = context
        self.options = options
        self.settings = settings
        self.board = Switchboard()
        self.sources = 0
        """Kept by the subscriber, to spread the sources evenly."""
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_in, self._wake_out = socket.socketpair()
        self._lines: dict[int, SourceLine] = {}
        self._waiting: deque[tuple[SourceLine, Question]] = deque()
        self._replaying: set[SourceLine] = set()
        self._ticks = 0
        self._closing = False
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self.board.plug(self._wake_out.fileno(), self._woken)

    # -- from other threads -------------------------------------------------------------------

    def add(self, feed: Feed, endpoint: str, warm: Warm | None) -> None:
        """Subscribe, soon, once what was saved of it is in the index."""
        self._command(lambda: self._add(feed, endpoint, warm))

    def remove(self, source: int) -> None:
        """Close the sockets of a source, soon; its feed is stopped by now."""
        self._command(lambda: self._remove(source))

    def discard(self, source: int, reason: ClearReason) -> None:
        """Empty a source, soon, and go on with what follows."""
        self._command(lambda: self._on_line(source, lambda line, now: line.discard(reason, now)))

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
        if not self._waiting:
            return
        receiving = sum(line.receives for line in self._replaying)
        while self._waiting and receiving < _REPLAYS_AT_ONCE:
            receiving += 1
            line, question = self._waiting.popleft()
            self._replaying.add(line)
            line.begin_replay(question, now)

    # -- the thread ---------------------------------------------------------------------------

    def run(self) -> None:
        give_way()
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
                    self._tick(now)
                self._begin_replays(now)
        finally:
            for source in list(self._lines):
                self._remove(source)
            self._wake_in.close()
            self._wake_out.close()

    def _tick(self, now: float) -> None:
        """Calm sources take turns."""
        self._ticks += 1
        for number, line in enumerate(self._lines.values(), start=self._ticks):
            if number % _CALM_TICKS == 0 or not line.calm:
                line.tick(now)

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

    def _add(self, feed: Feed, endpoint: str, warm: Warm | None) -> None:
        if warm is not None:
            feed.restore(warm)
        line = self._lines[feed.source] = SourceLine(feed, endpoint, self)
        line.open(time.monotonic())

    def _on_line(self, source: int, action: Callable[[SourceLine, float], None]) -> None:
        line = self._lines.get(source)
        if line is not None:
            action(line, time.monotonic())

    def _remove(self, source: int) -> None:
        line = self._lines.pop(source, None)
        if line is None:
            return
        try:
            line.close()
        except Exception:  # the thread serves others too, and the context waits for all sockets
            line.feed.fault()
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
        """Starts its threads. `on_clear(source)` and `on_new_engine(pod)` are called from them.

        Raises SettingsError for CURVE keys that cannot be used.
        """
        options = link_options(settings)
        self._index = index
        self._settings = settings
        self._metrics = metrics
        self._on_clear = on_clear
        self._on_new_engine = on_new_engine
        self._context = new_context()
        self._feeds: dict[int, tuple[Feed, Reader]] = {}
        self._readers = [
            Reader(number, self._context, settings, options)
            for number in range(settings.kv_subscriber_threads)
        ]
        for reader in self._readers:
            reader.start()

    def add(self, source: int, name: str, rank: Rank, warm: Warm | None = None) -> None:
        """Follow a source; `name` is its pod's, for logs and metrics.

        `warm` is imported first, by the thread that will read the source. It is kept where the
        engine's replay proves that the same process answers, else cleared.

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
            self._on_new_engine,
            Recent(),
        )
        reader = min(self._readers, key=lambda r: r.sources)
        reader.sources += 1
        self._feeds[source] = (feed, reader)
        reader.add(feed, rank.event_endpoint, warm)

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

    def discard(self, source: int, reason: ClearReason) -> None:
        """Empty a source, soon, and go on with what follows; one not followed is ignored."""
        entry = self._feeds.get(source)
        if entry is not None:
            entry[1].discard(source, reason)

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
