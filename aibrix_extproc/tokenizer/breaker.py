"""A circuit breaker: whether one endpoint may be asked now.

A plain state machine. It knows no endpoint, and its clock is the `now` that is passed in
(seconds, any origin that does not go back).

    closed ──N failures in a row──► open ──cooldown──► half-open (one trial)
       ▲                              ▲                     │
       └────────── success ───────────┴────── failure ──────┘

`trip` opens it from closed and half-open alike.
"""

from enum import StrEnum


class BreakerState(StrEnum):
    """CLOSED: ask freely. OPEN: leave alone. HALF_OPEN: one trial is under way."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Counts failures in a row: at `failures` it opens for `cooldown_s` seconds."""

    def __init__(self, failures: int, cooldown_s: float) -> None:
        self._limit = failures
        self._cooldown_s = cooldown_s
        self._in_a_row = 0
        self._retry_at = 0.0
        self.state = BreakerState.CLOSED

    def allows(self, now: float) -> bool:
        """Whether a call may begin now. Asking changes nothing."""
        if self.state is BreakerState.OPEN:
            return now >= self._retry_at
        return self.state is BreakerState.CLOSED

    def begin(self) -> None:
        """A call begins, after `allows` said yes: from open it is the one trial."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.HALF_OPEN

    def succeed(self) -> None:
        """A call got an answer. One that began before the breaker opened closes it too."""
        self._in_a_row = 0
        self.state = BreakerState.CLOSED

    def fail(self, now: float) -> None:
        """A call failed. While open, a late failure does not lengthen the cooldown."""
        self._in_a_row += 1
        if self.state is BreakerState.OPEN:
            return
        if self.state is BreakerState.HALF_OPEN or self._in_a_row >= self._limit:
            self.state = BreakerState.OPEN
            self._retry_at = now + self._cooldown_s

    def trip(self, now: float) -> None:
        """It stands still: open at once, without waiting for N calls to fail."""
        if self.state is not BreakerState.OPEN:
            self.state = BreakerState.OPEN
            self._retry_at = now + self._cooldown_s

    def abandon(self, now: float) -> None:
        """A call was cancelled and proves nothing: another may be the trial at once."""
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN
            self._retry_at = now
