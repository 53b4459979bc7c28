"""One scrape of `/metrics`: the gauges of the index are read when somebody asks.

Owns those gauges. It may be called from any thread, one call at a time.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from aibrix_extproc.index.results import IndexStats
from aibrix_extproc.metrics import Metrics

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

MAX_MEDIA: Final = 16
"""Media are named by engines: past this many, the rest is one series, `other`."""


class HasStats(Protocol):
    """The index, as far as a scrape sees it."""

    def stats(self) -> IndexStats: ...


class Scrape:
    """Refreshes the gauges of the index and writes all metrics in Prometheus' text format."""

    def __init__(self, metrics: Metrics, index: HasStats) -> None:
        self._metrics = metrics
        self._index = index
        self._media: set[str] = set()

    def text(self) -> bytes:
        """Every metric as it is now. Takes milliseconds per hundred sources."""
        self._refresh(self._index.stats())
        return generate_latest(self._metrics.registry)

    def _refresh(self, stats: IndexStats) -> None:
        metrics = self._metrics
        metrics.index_bytes.set(stats.bytes)
        metrics.index_blocks.set(stats.blocks)
        metrics.index_orphans.set(stats.orphans)
        metrics.index_sources.set(stats.sources)
        metrics.index_full_sources.set(len(stats.full_sources))
        by_medium = _bounded(stats.by_medium)
        for gone in self._media - by_medium.keys():
            metrics.index_placements.remove(gone)
        for medium, placements in by_medium.items():
            metrics.index_placements.labels(medium).set(placements)
        self._media = set(by_medium)


def _bounded(by_medium: Mapping[str, int]) -> dict[str, int]:
    largest = sorted(by_medium.items(), key=lambda item: -item[1])
    kept = dict(largest[:MAX_MEDIA])
    if rest := sum(placements for _, placements in largest[MAX_MEDIA:]):
        kept["other"] = kept.get("other", 0) + rest
    return kept
