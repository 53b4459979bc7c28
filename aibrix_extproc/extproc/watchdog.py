"""Ends the process when its event loop stands still: a hung server hangs requests.

Owns a thread and a heartbeat. In duplex Envoy has no time-out of its own, and a stopped replica
is only left alone once it is gone; Kubernetes starts it again.
"""

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from aibrix_extproc.metrics import Metrics

EXIT_CODE: Final = 70
"""Exit code after a stall (EX_SOFTWARE of sysexits.h). A stall that also holds the interpreter's
lock, so that no Python thread can run, ends with code 1 and a dump of all threads."""

_TICKS_PER_LIMIT: Final = 10
_MAX_TICK_S: Final = 0.5
_LOG_WAIT_S: Final = 1.0

_log = logging.getLogger(__name__)


class Watchdog:
    """Watches the loop on which it is started.

    A stall is counted in ticks of this thread, so that a process that was frozen as a whole
    (SIGSTOP, a paused container) is not taken for a hung one when it goes on. Only a second
    line, for stalls that hold the interpreter's lock, counts real time: twice the limit.
    """

    def __init__(
        self, limit_s: float, metrics: Metrics, leave: Callable[[int], None] = os._exit
    ) -> None:
        """`limit_s`: longest stall, in seconds; 0 measures the lag and never ends anything."""
        self._limit_s = limit_s
        self._metrics = metrics
        self._leave = leave
        # Seconds between two beats.
        self.tick_s = min(_MAX_TICK_S, limit_s / _TICKS_PER_LIMIT) if limit_s else _MAX_TICK_S
        self._beats = 0
        self._due_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop_thread = 0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, on the running loop and its thread."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._due_s = self._loop.time()
        self._beat()
        if self._limit_s:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop watching; the loop may take as long as it likes from now on."""
        self._closed.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _beat(self) -> None:
        assert self._loop is not None  # noqa: S101
        now_s = self._loop.time()
        self._metrics.loop_lag.set(max(0.0, now_s - self._due_s))
        self._beats += 1
        if self._limit_s:
            faulthandler.dump_traceback_later(2 * self._limit_s + self.tick_s, exit=True)
        self._due_s = now_s + self.tick_s
        self._timer = self._loop.call_at(self._due_s, self._beat)

    def _watch(self) -> None:
        seen, stalled_s, last_s = -1, 0.0, time.monotonic()
        while not self._closed.wait(self.tick_s):
            now_s = time.monotonic()
            passed_s, last_s = min(now_s - last_s, 2 * self.tick_s), now_s
            beats = self._beats
            stalled_s = stalled_s + passed_s if beats == seen else 0.0
            seen = beats
            if stalled_s > self._limit_s:
                self._end(stalled_s)
                return

    def _end(self, stalled_s: float) -> None:
        # The loop may hang in a write to the log itself: then the line is lost, not the exit.
        line = threading.Thread(target=self._tell, args=(stalled_s,), daemon=True)
        line.start()
        line.join(_LOG_WAIT_S)
        self._leave(EXIT_CODE)

    def _tell(self, stalled_s: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        stack = "".join(traceback.format_stack(frame)) if frame else "(its thread is gone)"
        _log.critical(
            "the event loop has stood still for %.1f s (AIBRIX_EXTPROC_WATCHDOG_TIMEOUT is %g s): "
            "this process ends with exit code %d. The loop's thread is at:\n%s",
            stalled_s,
            self._limit_s,
            EXIT_CODE,
            stack,
        )
