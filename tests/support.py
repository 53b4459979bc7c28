"""What many tests need: waiting for a condition, a free port, the recorded data."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from aibrix_extproc.stack import processes

T = TypeVar("T")

_POLL_S = 0.01


def eventually(check: Callable[[], T], timeout_s: float = 10.0) -> T:
    """Poll `check` until it returns something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (value := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s; the last value was {value!r}")
        time.sleep(_POLL_S)
    return value


async def eventually_async(
    check: Callable[[], T] | Callable[[], Awaitable[T]], timeout_s: float = 10.0
) -> T:
    """The same on an event loop; `check` may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = check()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value  # type: ignore[return-value]
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s; the last value was {value!r}")
        await asyncio.sleep(_POLL_S)


def free_port() -> int:
    """A TCP port of the loopback that is free, and that no outgoing connection takes."""
    return processes.free_port()


def data_path(name: str) -> Path:
    """A file or folder under tests/data."""
    return Path(__file__).parent / "data" / name
