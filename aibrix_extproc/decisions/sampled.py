"""The log of decisions: one JSON object a line, of a share of them.

Owns which are sampled, and the shape of the line, which is JSON whatever the format of the other
lines is. Written to standard error with them, at every log level.
"""

import logging
import sys
from random import Random
from typing import Final

import msgspec

from aibrix_extproc.decisions.record import DecisionRecord, rendered

LOGGER: Final = "aibrix_extproc.decisions"


class SampledLog:
    """Writes some of the decisions that it is given."""

    def __init__(self, share: float, rng: Random) -> None:
        """`share`: how many of them, 0 to 1."""
        self._share = share
        self._random = rng.random
        self._log = logging.getLogger(LOGGER)
        if share > 0:
            _own_lines(self._log)

    @property
    def is_on(self) -> bool:
        """Some are written."""
        return self._share > 0

    def write(self, record: DecisionRecord) -> None:
        """Write it, or not: that is drawn by lot."""
        if self._random() >= self._share:
            return
        line = {"level": "INFO", "logger": LOGGER, "message": "decision", **rendered(record)}
        self._log.info("%s", msgspec.json.encode(line).decode())


def _own_lines(log: logging.Logger) -> None:
    """The bare line, beside what the other loggers write and how."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
