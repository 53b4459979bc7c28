"""How much of something there was per second, of late. Knows no clock: the time is given."""

from collections import deque
from typing import Final

WINDOW_S: Final = 5.0
_STEP_S: Final = 0.5


class Rates:
    """Sums of several amounts over the last `WINDOW_S`, in steps of half a second."""

    def __init__(self, kinds: int) -> None:
        """`kinds` amounts, each named by its place."""
        self._kinds = kinds
        self._steps: deque[tuple[float, list[float]]] = deque()
        self._began: float | None = None

    def add(self, kind: int, amount: float, now: float) -> None:
        """There was so much more of one kind."""
        if self._began is None:
            self._began = now
        start = now - now % _STEP_S
        if not self._steps or self._steps[-1][0] < start:
            self._steps.append((start, [0.0] * self._kinds))
            self._forget(now)
        self._steps[-1][1][kind] += amount

    def per_s(self, now: float) -> tuple[float, ...]:
        """Each kind per second. A source that is younger than the window is not made smaller."""
        if self._began is None:
            return (0.0,) * self._kinds
        self._forget(now)
        span_s = min(WINDOW_S, max(1.0, now - self._began))
        return tuple(
            sum(amounts[kind] for _, amounts in self._steps) / span_s for kind in range(self._kinds)
        )

    def _forget(self, now: float) -> None:
        while self._steps and self._steps[0][0] <= now - WINDOW_S - _STEP_S:
            self._steps.popleft()
