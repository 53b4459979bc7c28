"""Which model names may be values of the metric label `model`, and when they leave again.

A name gets its series when something is first counted for it, and loses them when no pod serves
it any more. Lives on the event loop. It knows no pod: the registry tells it the names.
"""

import logging
from collections.abc import Callable, Collection, Iterable
from typing import Final

from prometheus_client.metrics import MetricWrapperBase

from aibrix_extproc.logs import StateLog

DEFAULT_MAX: Final = 500

UNKNOWN: Final = "unknown"
"""Of a request whose model is not served, or not known."""
OTHER: Final = "other"
"""Models past the bound, and those that went while a request of theirs was under way."""


class ModelLabels:
    """The label values of now; at most `max_values` of them beside UNKNOWN and OTHER."""

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._served: Collection[str] = ()
        self._used: set[str] = set()
        self._metrics: tuple[MetricWrapperBase, ...] = ()
        self._on_gone: Callable[[], None] = lambda: None
        self._states = StateLog(logging.getLogger(__name__))

    def of(self, name: str) -> str:
        """The value that stands for a model."""
        if name in self._used or name == UNKNOWN:
            return name
        if name not in self._served:
            return OTHER
        if len(self._used) >= self._max_values:
            why = f"{self._max_values} are exported; AIBRIX_EXTPROC_MAX_MODEL_LABELS"
            self._states.changed("models in metrics", "further ones count as other in metrics", why)
            return OTHER
        self._used.add(name)
        return name

    def cover(self, metrics: Iterable[MetricWrapperBase], on_gone: Callable[[], None]) -> None:
        """Take the series of gone models out of these metrics; all have the label `model`.

        `on_gone` is called after that: a child that somebody kept is exported no more.
        """
        self._metrics = tuple(metrics)
        self._on_gone = on_gone

    def serve(self, names: Collection[str]) -> None:
        """These names are served now, and no others: the series of the rest go."""
        gone = [name for name in self._served if name not in names]
        self._served = names
        for name in gone:
            for metric in self._metrics:
                metric.remove_by_labels({"model": name})
        self._used.difference_update(gone)
        if gone:
            self._on_gone()
            self._states.changed("models in metrics", "ok")
