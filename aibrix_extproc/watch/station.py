"""What every station offers to whoever shows it, and the last lines of the log."""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from aibrix_extproc.watch.rows import View

KEPT_LINES: Final = 50


class Station(Protocol):
    """A place from which sources are watched: sockets, a recording, a server's debug port."""

    def start(self) -> None:
        """Begin. Raises SettingsError, or what else of ExtprocError keeps it from beginning."""
        ...

    def view(self) -> View:
        """What is known at this moment. Never waits for a network."""
        ...

    def settled(self) -> bool:
        """There is enough for a first look: every source is past its first sync."""
        ...

    def final(self) -> View:
        """As `view`, with a fresh look at who holds what."""
        ...

    def close(self) -> None:
        """End. Harmless when called again."""
        ...


class LastLines(logging.Handler):
    """Keeps the last lines of the log, for a screen that has no room for standard error."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(logging.INFO)
        self.clock = clock
        """Seconds since the epoch; a recording has its own."""
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        at = time.strftime("%H:%M:%S", time.localtime(self.clock()))
        self._lines.append(f"{at} {record.getMessage()}")

    def lines(self) -> tuple[str, ...]:
        """Oldest first."""
        return tuple(self._lines)
