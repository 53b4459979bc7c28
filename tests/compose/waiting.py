"""Waiting for a condition, with a failure that says what was waited for."""

import time
from collections.abc import Callable
from typing import TypeVar

from tests.compose.docker_engine import Failed

T = TypeVar("T")
_POLL_S = 0.2


def until(
    check: Callable[[], T],
    timeout_s: float,
    what: str,
    shown: Callable[..., object] | None = None,
) -> T:
    """Poll until `check` returns something true, and return that. Raises Failed."""
    deadline = time.monotonic() + timeout_s
    while not (value := check()):
        if time.monotonic() > deadline:
            raise Failed(f"not within {timeout_s:.0f} s: {what} ({shown() if shown else value})")
        time.sleep(_POLL_S)
    return value
