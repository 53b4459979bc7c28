"""How lines are written, and how a lasting trouble is told once.

Owns the format of the log. No prompt text is ever given to it.
"""

import json
import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from typing import Final

from aibrix_extproc.settings import LogFormat

AUDIT: Final = "aibrix_extproc.levers"
"""The logger of what operators change while the process runs."""


LINES_PER_PLACE: Final = 100
LINES_PER_S: Final = 10.0
_MAX_PLACES: Final = 10_000


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(level: str, log_format: LogFormat) -> None:
    """Send every line to standard error, as text or as one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format is LogFormat.JSON:
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    handler.addFilter(throttle)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # What an operator did is told at every level.
    logging.getLogger(AUDIT).setLevel(logging.INFO)
    for chatty in ("httpx", "httpcore", "kubernetes", "urllib3", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Change the least severe line that is written, until the process ends."""
    logging.getLogger().setLevel(level)


class Throttle(logging.Filter):
    """Lets each place in the code write `burst` lines in `per_s` seconds of one thing (the line's
    first argument: a source, a pod, an endpoint); the rest are counted.

    Most troubles are told by StateLog, once. This is for what a hostile engine or client could make
    a place say again and again. The next line that is written tells how many were left out.
    """

    def __init__(self, burst: int = LINES_PER_PLACE, per_s: float = LINES_PER_S) -> None:
        super().__init__()
        self._burst = burst
        self._per_s = per_s
        self._places: OrderedDict[Hashable, _Place] = OrderedDict()
        self._guard = threading.Lock()
        self.on_dropped: Callable[[], None] = lambda: None
        """Called for each line that is left out, from any thread."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written. What operators asked for (INFO, the audit) always is."""
        if record.levelno < logging.WARNING or record.name == AUDIT:
            return True
        with self._guard:
            place = self._places.setdefault(_what(record), _Place())
            if len(self._places) > _MAX_PLACES:
                self._places.popitem(last=False)
            if record.created - place.since >= self._per_s:
                left_out, place.left_out = place.left_out, 0
                place.since, place.written = record.created, 0
                if left_out:
                    record.msg = f"{record.getMessage()} (and {left_out} more like this before)"
                    record.args = ()
            place.written += 1
            if place.written <= self._burst:
                return True
            place.left_out += 1
        self.on_dropped()
        return False


def _what(record: logging.LogRecord) -> Hashable:
    first = record.args[0] if isinstance(record.args, tuple) and record.args else ""
    return (record.pathname, record.lineno, str(first)[:200])


class _Place:
    __slots__ = ("left_out", "since", "written")

    def __init__(self) -> None:
        self.since, self.written, self.left_out = 0.0, 0, 0


throttle = Throttle()
"""That of this process's log."""


_MAX_SPELLS: Final = 4096
"""Things whose spells are remembered; the one that was quiet for longest goes."""


class StateLog:
    """Writes a line when the state of a thing changes, and none while it stays.

    `changed("tokenizer http://…", "down", "5 failures in a row")` logs once; the next call with
    the same state is silent. Safe from any thread.
    """

    def __init__(self, logger: logging.Logger, good: Hashable = "ok") -> None:
        self._logger = logger
        self._good = good
        self._states: dict[Hashable, Hashable] = {}
        self._lock = threading.Lock()

    def changed(
        self, thing: str, state: Hashable, why: str = "", level: int = logging.WARNING
    ) -> bool:
        """Log the change; True where there was one. A thing never seen is taken to be good.

        `level` is that of a state which is not good: INFO for what is known to be usual.
        """
        with self._lock:
            before = self._states.get(thing, self._good)
            if state == self._good:
                self._states.pop(thing, None)
            else:
                self._states[thing] = state
        if state == before:
            return False
        self._logger.log(
            logging.INFO if state == self._good else level,
            "%s: %s → %s%s",
            thing,
            before,
            state,
            f" ({why})" if why else "",
        )
        return True

    def forget(self, thing: str) -> None:
        """Drop what is known of a thing that is gone."""
        with self._lock:
            self._states.pop(thing, None)


class Spells:
    """Tells of what happens again and again: when it begins, and when it begins anew.

    A spell is over after `quiet_s` seconds without it; what comes then is told, with the number
    of those in the spell before. For what has no good state to return to. Safe from any thread.
    """

    def __init__(
        self,
        logger: logging.Logger,
        quiet_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._quiet_s = quiet_s
        self._clock = clock
        self._spells: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._lock = threading.Lock()

    def seen(self, thing: str, why: str = "", level: int = logging.WARNING, times: int = 1) -> bool:
        """It happened, so many times. True where that was told."""
        now = self._clock()
        with self._lock:
            last, count = self._spells.pop(thing, (float("-inf"), 0))
            is_new = now - last >= self._quiet_s
            self._spells[thing] = (now, times if is_new else count + times)
            while len(self._spells) > _MAX_SPELLS:
                self._spells.popitem(last=False)
        if is_new:
            before = f"; {count} times before it was quiet" if count else ""
            self._logger.log(level, "%s%s%s", thing, f" ({why})" if why else "", before)
        return is_new
