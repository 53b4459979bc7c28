"""How lines are written, and how a lasting trouble is told once.

Owns the format of the log. No prompt text is ever given to it.
"""

import json
import logging
import sys
import threading
from collections.abc import Hashable
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
