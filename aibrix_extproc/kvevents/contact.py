"""The connection to one engine: since when, and what it has brought.

Owns what is known of one subscription, and how long its silence is borne. A connection belongs
to one engine process. Knows neither states nor what was applied.
"""

from typing import Final

_ASK_AGAIN_S: Final = 1.0
"""After the first replay of a connection that has brought no live batch yet."""


class Contact:
    """One source's connection, or the lack of one. Times are seconds, monotonic."""

    def __init__(self, now: float) -> None:
        self.stands = False
        self.changed_at = now
        """When it last began or ended."""
        self.heard_at = now
        """When the engine was last heard: a live batch, an answer, or a new connection."""
        self.live_at: float | None = None
        """When this connection last brought a live batch; None before the first."""
        self.live_high: int | None = None
        """The last live number of this connection; None before the first."""
        self.tail_unsure = False
        """The engine may have answered the first question before it took note of the
        subscription: a batch between the two reached nobody."""

    @property
    def heard_live(self) -> bool:
        """Whether this connection has brought a live batch."""
        return self.live_high is not None

    def begin(self, now: float) -> None:
        """A new connection stands."""
        self.stands = True
        self.changed_at = self.heard_at = now

    def end(self, now: float) -> None:
        """It is gone, and with it what it told of the engine process."""
        self.stands = False
        self.changed_at = now
        self.live_high = None
        self.live_at = None

    def live(self, sequence: int, now: float) -> None:
        """It brought a live batch."""
        self.live_high = sequence
        self.heard_at = self.live_at = now

    def patience_s(self, idle_probe_s: float) -> float:
        """How long a silence may last before the source is asked.

        Short once on each connection, as long as it brought no live batch.
        """
        if self.tail_unsure and not self.heard_live:
            return min(_ASK_AGAIN_S, idle_probe_s)
        return idle_probe_s
