"""How metrics are made, and those of the agreement room: a part of `metrics`.

Owns the shapes (buckets) and one group; `metrics` has all others and the rules for labels.
"""

import contextlib

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_FAST_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_TOKENS_APART = (-8192, -2048, -512, -128, -32, -1, 0, 32, 128, 512, 2048, 8192)


class MetricMakers:
    """Makes metrics in one registry."""

    registry: CollectorRegistry

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=_FAST_SECONDS)

    @staticmethod
    def remove(metric: Counter | Gauge | Histogram, *labels: object) -> None:
        """Drop a series, where there is one."""
        with contextlib.suppress(KeyError):
            metric.remove(*labels)


class AgreementMetrics(MetricMakers):
    """Whether engines do what is believed of them."""

    def _engine_tokens(self) -> None:
        self.picks = self._counter(
            "aibrix_extproc_picks_total",
            "Picks by who then served: honoured, other, stranger, unknown.",
            "result",
        )
        self.promises = self._counter(
            "aibrix_extproc_promises_total",
            "Answered prompts that were looked for among what the pod's events say, by result.",
            "model",
            "pod",
            "result",
        )
        self.doubted_pods = self._gauge(
            "aibrix_extproc_doubted_pods",
            "Pods whose events do not name the blocks of what they were sent.",
            "model",
            "kind",
        )
        self.tokenizers_differ = self._gauge(
            "aibrix_extproc_tokenizers_differ",
            "Pods (and the tokenizer endpoint) that make other tokens of one text than most.",
            "model",
        )
        self.token_flushes = self._counter(
            "aibrix_extproc_token_flushes_total",
            "Times the remembered tokens of a model were dropped, by reason.",
            "reason",
        )

    def _engine_reuse(self) -> None:
        self.usage_samples = self._counter(
            "aibrix_extproc_usage_samples_total",
            "Sampled answers by how their reuse compares with what was predicted.",
            "model",
            "result",
        )
        self.prediction_error = Histogram(
            "aibrix_extproc_prediction_error_tokens",
            "Of a sampled request: predicted minus actually reused prompt tokens.",
            ("model",),
            registry=self.registry,
            buckets=_TOKENS_APART,
        )
        self.sampled_predicted = self._counter(
            "aibrix_extproc_sampled_predicted_tokens_total",
            "Prompt tokens that sampled requests were predicted to reuse.",
            "model",
        )
        self.sampled_cached = self._counter(
            "aibrix_extproc_sampled_cached_tokens_total",
            "Prompt tokens that the same requests reused, by the engines' word.",
            "model",
        )
        self.engine_prompt_tokens = self._counter(
            "aibrix_extproc_engine_prompt_tokens_total",
            "Prompt tokens that the engines looked up in their caches, by their own counters.",
            "model",
        )
        self.engine_cached_tokens = self._counter(
            "aibrix_extproc_engine_cached_tokens_total",
            "Of these, those that they found.",
            "model",
        )
        self.reuse_difference = self._gauge(
            "aibrix_extproc_reuse_share_difference",
            "Share of prompt tokens predicted to be reused, minus the engines' own share.",
            "model",
        )
        self.agreement_errors = self._counter(
            "aibrix_extproc_agreement_errors_total",
            "Questions to engines about tokens and reuse that failed, by reason.",
            "reason",
        )

    def _scheduling(self) -> None:
        self.scheduled_requests = self._counter(
            "aibrix_extproc_scheduled_requests_total",
            "Requests followed to their scheduling by the engine, by what became of that.",
            "result",
        )
        self.scheduled_followed = self._gauge(
            "aibrix_extproc_scheduled_followed", "Requests that are followed now."
        )
        self.scheduled_prompt_tokens = self._counter(
            "aibrix_extproc_scheduled_prompt_tokens_total",
            "Prompt tokens of requests followed to their scheduling.",
            "model",
        )
        self.scheduled_matched_tokens = self._counter(
            "aibrix_extproc_scheduled_matched_tokens_total",
            "Of these, those that the serving pod was known to hold when it took the request.",
            "model",
        )
        self.scheduled_gap_tokens = self._counter(
            "aibrix_extproc_scheduled_gap_tokens_total",
            "Tokens held at scheduling that were not matched at the decision (more), or the other "
            "way round (less), by cause.",
            "model",
            "cause",
            "direction",
        )
