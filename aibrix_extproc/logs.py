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
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # What an operator did is told at every level.
    logging.getLogger(AUDIT).setLevel(logging.INFO)
    for chatty in ("httpx", "httpcore", "kubernetes", "urllib3", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Change the least severe line that is written, until the process ends."""
    logging.getLogger().setLevel(level)


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
