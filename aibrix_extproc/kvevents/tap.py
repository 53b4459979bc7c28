"""What a bystander may learn of one source, as it happens: every message, and what became of it.

Owns the calls and does nothing with them: `Tap` is what a source has that nobody watches. All of
them come from the source's reader thread, which waits meanwhile, so they must be short and must
not raise. A message is told before it is read, and one that is dropped with its connection too.
"""

from collections.abc import Sequence

from aibrix_extproc.index import Applied
from aibrix_extproc.kvevents.effects import Effect


class Tap:
    """Hears nothing. Subclasses override what they want to hear."""

    def contact(self, up: bool) -> None:
        """The subscription's connection stands, or is gone."""

    def message(self, frames: Sequence[bytes], now: float) -> None:
        """PUB brought one."""

    def answer(self, start: int, frames: Sequence[bytes], now: float) -> None:
        """The replay port brought one, to the question for every batch with sequence ≥ `start`."""

    def effect(self, effect: Effect) -> None:
        """The state machine's wish, just before it is carried out."""

    def applied(self, sequence: int, applied: Applied) -> None:
        """A batch is in the index."""


SILENT = Tap()
"""Of a source that nobody watches."""
