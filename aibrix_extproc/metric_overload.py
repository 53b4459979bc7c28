"""The metrics of overload: a part of `metrics`, which has the rules for labels."""

from prometheus_client import Histogram

from aibrix_extproc.metric_agreement import MetricMakers

_DELAYS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
_APART_S = (-20.0, -5.0, -2.0, -1.0, -0.5, -0.2, -0.05, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)

OVERLOAD_RESULTS = ("refused", "would_refuse", "elsewhere")
"""What became of a request whose first choice could not begin it in time: the values of
`aibrix_extproc_overload_total`'s label `result`."""


class OverloadMetrics(MetricMakers):
    """How long requests wait for their beginning, by estimate, and what follows."""

    def _overload(self) -> None:
        self.prefills = self._counter(
            "aibrix_extproc_prefills_total",
            "Prompts that were found computed, by what told it: head (of the answer), events (its "
            "blocks), later (the blocks of one after it), end (the answer's, unseen until then).",
            "told_by",
        )
        self.overload = self._counter(
            "aibrix_extproc_overload_total",
            "Requests whose first choice could not begin in time: refused, would_refuse (in shadow "
            "mode), elsewhere (another pod was chosen).",
            "result",
        )
        for result in OVERLOAD_RESULTS:
            self.overload.labels(result)
        self.start_delay = Histogram(
            "aibrix_extproc_start_delay_seconds",
            "Until the pod that the strategy puts first could begin the request, by estimate.",
            registry=self.registry,
            buckets=_DELAYS_S,
        )
        self.start_error = Histogram(
            "aibrix_extproc_start_error_seconds",
            "When a streamed answer should have begun by estimate, minus when it did.",
            registry=self.registry,
            buckets=_APART_S,
        )
