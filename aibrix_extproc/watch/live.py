"""The station of sockets: event streams read as a server reads them, and recorded where asked.

Owns the thread that reads, and the one that looks at what is held. How a source is followed is
`kvevents`'.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from aibrix_extproc.kvevents.sockets import link_options, new_context
from aibrix_extproc.kvevents.subscriber import Reader
from aibrix_extproc.kvevents.yielding import give_way
from aibrix_extproc.settings import Settings
from aibrix_extproc.watch.recorder import Recorder
from aibrix_extproc.watch.rows import View
from aibrix_extproc.watch.tally import Tally
from aibrix_extproc.watch.watched import Pace, Target, Watched, unique

log = logging.getLogger(__name__)

_TURN_S = 0.2


class RecordedTally(Tally):
    """Writes every message down before it counts it."""

    def __init__(self, *args: Any, recorder: Recorder, **options: Any) -> None:
        super().__init__(*args, **options)
        self._recorder = recorder

    def message(self, frames: Sequence[bytes], now: float) -> None:
        self._recorder.live(time.time(), self.name, frames)
        super().message(frames, now)

    def answer(self, start: int, frames: Sequence[bytes], now: float) -> None:
        self._recorder.answer(time.time(), self.name, start, frames)
        super().answer(start, frames, now)


class Live:
    """Watches engines. `start` and `close` come from one thread."""

    def __init__(
        self,
        targets: Sequence[Target],
        settings: Settings,
        recorder: Recorder | None = None,
        *,
        with_tokens: bool = False,
        log_lines: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """Raises SettingsError for CURVE keys that cannot be used."""
        self._recorder = recorder
        self._log_lines = log_lines
        self._watched = Watched(settings, _wall, with_tokens=with_tokens)
        self._context = new_context()
        self._reader = Reader(0, self._context, settings, link_options(settings))
        self._looker = threading.Thread(target=self._look, name="watch-looker", daemon=True)
        self._closing = threading.Event()
        self._began = time.monotonic()
        for target in unique(targets):
            entry = self._watched.add(target, self._tally)
            if target.rank.event_endpoint is not None:
                self._reader.add(entry.feed, target.rank.event_endpoint, None)

    def start(self) -> None:
        """Subscribe to all of them."""
        self._began = time.monotonic()
        self._reader.start()
        self._looker.start()

    def view(self) -> View:
        now = time.monotonic()
        return View(
            rows=self._watched.rows(now),
            now=time.time(),
            elapsed_s=now - self._began,
            holdings=self._watched.holdings,
            notes=self._notes(),
            failures=self._failures(),
            log=self._log_lines(),
        )

    def settled(self) -> bool:
        return self._watched.past_first_sync()

    def final(self) -> View:
        self._end_looker()
        self._watched.look()
        return self.view()

    def close(self) -> None:
        self._end_looker()
        for entry in self._watched.entries:
            entry.feed.stop()
        self._watched.entries.clear()
        if self._reader.is_alive():
            self._reader.close()
            self._reader.join()
            self._context.term()
        if self._recorder is not None:
            self._recorder.close()

    def _end_looker(self) -> None:
        self._closing.set()
        if self._looker.is_alive():
            self._looker.join()

    def _tally(self, *args: Any, **options: Any) -> Tally:
        if self._recorder is None:
            return Tally(*args, **options)
        return RecordedTally(*args, recorder=self._recorder, **options)

    def _notes(self) -> tuple[str, ...]:
        recorder = self._recorder
        if recorder is None or recorder.stopped is not None:
            return ()
        return (f"recording to {recorder.path}: {recorder.lines} messages",)

    def _failures(self) -> tuple[str, ...]:
        stopped = self._recorder.stopped if self._recorder is not None else None
        return (stopped,) if stopped is not None else ()

    def _look(self) -> None:
        give_way()
        pace = Pace()
        while not self._closing.wait(_TURN_S):
            if not pace.due():
                continue
            began = time.monotonic()
            try:
                self._watched.look()
            except Exception:  # the rows go on without it
                log.exception("who holds what could not be found out")
            pace.took(time.monotonic() - began)


def _wall(now: float) -> float:
    return now + time.time() - time.monotonic()
