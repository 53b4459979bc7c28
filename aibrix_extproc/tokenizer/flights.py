"""One call for equal prompts: who waits for it, how long, and what becomes of it when they leave.

Knows keys, deadlines and asyncio tasks; nothing of HTTP. A waiter leaves alone: its deadline or
its cancellation never ends the call of the others.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from aibrix_extproc.tokenizer.types import Reason, TokenizerUnavailable, Tokens

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Flight:
    """A call under way."""

    key: bytes
    size_bytes: int
    task: "asyncio.Task[Tokens] | None" = None
    waiters: int = 0
    until: float = 0.0
    """The latest deadline of its waiters, on the monotonic clock."""
    kept: bool = False
    """A waiter left by its deadline: the call goes on, so that the cache is filled."""

    def is_awaited(self) -> bool:
        """Whether trying again could still serve somebody in time."""
        return self.waiters > 0 and time.monotonic() < self.until


class Flights:
    """All calls under way, bounded in number and in bytes of bodies."""

    def __init__(self, max_flights: int, max_bytes: int) -> None:
        self._max_flights = max_flights
        self._max_bytes = max_bytes
        self._by_key: dict[bytes, Flight] = {}
        self._under_way: set[Flight] = set()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._under_way)

    def get(self, key: bytes) -> Flight | None:
        """The call of an equal prompt that may be joined."""
        return self._by_key.get(key)

    def start(
        self, key: bytes, size_bytes: int, call: Callable[[Flight], Coroutine[Any, Any, Tokens]]
    ) -> Flight:
        """Begin a call; `wait` must follow at once. Raises TokenizerUnavailable(TOO_MANY)."""
        if len(self._under_way) >= self._max_flights or self._bytes + size_bytes > self._max_bytes:
            raise TokenizerUnavailable(Reason.TOO_MANY)
        flight = Flight(key, size_bytes)
        flight.task = asyncio.create_task(call(flight))
        flight.task.add_done_callback(lambda task: self._ended(flight, task))
        self._by_key[key] = flight
        self._under_way.add(flight)
        self._bytes += size_bytes
        return flight

    async def wait(self, flight: Flight, deadline_s: float) -> Tokens:
        """The tokens of a flight, within `deadline_s` seconds from now.

        Raises TokenizerUnavailable: of the call itself, or DEADLINE; the call goes on then.
        Cancelling the last waiter cancels the call, unless an earlier one left by its deadline.
        """
        assert flight.task is not None  # noqa: S101 - set by start
        flight.waiters += 1
        flight.until = max(flight.until, time.monotonic() + deadline_s)
        try:
            done, _ = await asyncio.wait((flight.task,), timeout=deadline_s)
        except asyncio.CancelledError:
            flight.waiters -= 1
            if not flight.waiters and not flight.kept:
                self._no_longer_joined(flight)
                flight.task.cancel()
            raise
        flight.waiters -= 1
        if not done:
            flight.kept = True
            raise TokenizerUnavailable(Reason.DEADLINE)
        if flight.task.cancelled():
            raise TokenizerUnavailable(Reason.CLOSED)
        return flight.task.result()

    async def close(self) -> None:
        """Cancel every call; its waiters get CLOSED."""
        tasks = [flight.task for flight in self._under_way if flight.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, flight: Flight, task: "asyncio.Task[Tokens]") -> None:
        self._no_longer_joined(flight)
        self._under_way.discard(flight)
        self._bytes -= flight.size_bytes
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, TokenizerUnavailable):
            _log.error("a tokenizer call failed unexpectedly", exc_info=error)

    def _no_longer_joined(self, flight: Flight) -> None:
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]
