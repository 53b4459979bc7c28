"""What engines last said of their KV caches, by source, and whether anybody wants to know.

Pure: knows no page, no poll and no clock; `now` is seconds of the ledger's. It belongs to one
thread, the event loop's.
"""

from collections.abc import Callable, Container, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

WANTED_FOR_S: Final = 60.0
"""After a decision that went by it. Until then it is read anew, so that the next one finds it."""


class CacheSample(msgspec.Struct, frozen=True, gc=False):
    """One rank's cache at one time, by its engine."""

    used: float
    """Share of its blocks that running requests held, 0 to 1."""
    at_s: float
    """When the engine was asked."""
    size_tokens: int | None
    """Of the whole cache; None where the engine does not say."""
    context_tokens: int = 0
    """Of this process's ledger at that time: what is more now was sent since."""


class CacheUse:
    """The last sample of each source."""

    def __init__(self) -> None:
        self._samples: dict[int, CacheSample] = {}
        self._wanted_until_s = float("-inf")
        self.samples: Mapping[int, CacheSample] = MappingProxyType(self._samples)
        """All of them, the old ones too: a read-only view."""
        self.on_wanted: Callable[[], None] = lambda: None
        """Called when somebody wants to know, and nobody did before."""

    def want(self, now: float) -> Mapping[int, CacheSample]:
        """The samples, for a decision that goes by them."""
        was_wanted = self.is_wanted(now)
        self._wanted_until_s = now + WANTED_FOR_S
        if not was_wanted:
            self.on_wanted()
        return self.samples

    def is_wanted(self, now: float) -> bool:
        """A decision went by them not long ago."""
        return now < self._wanted_until_s

    def put(self, source: int, sample: CacheSample) -> None:
        """An engine has answered."""
        self._samples[source] = sample

    def keep_only(self, sources: Container[int]) -> None:
        """Forget those that are gone."""
        for gone in [source for source in self._samples if source not in sources]:
            del self._samples[gone]
