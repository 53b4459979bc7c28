"""Every metric of this server, those of the other `metric_…` modules included.

`docs/metrics.md` explains each. One `Metrics` object is made at start and handed to the rooms that
count. Labels come from closed lists or from known pods and models, so that no client can add a
series. Room logic that needs no socket does not see this module: it returns what happened, and its
caller counts.
"""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from aibrix_extproc import model_labels
from aibrix_extproc.metric_agreement import AgreementMetrics
from aibrix_extproc.metric_events import EventMetrics
from aibrix_extproc.metric_overload import OverloadMetrics
from aibrix_extproc.metric_strategies import StrategyMetrics

FAULT_PLACES = ("request", "index_sweep", "event_sync", "live_page")
"""Where a fault costs no request: the values of `aibrix_extproc_faults_total`'s label `where`."""

Labelled = TypeVar("Labelled", bound=MetricWrapperBase)


class Children(Generic[Labelled]):
    """The children of a metric, each looked up once: `labels` takes a lock and checks its
    arguments (1 µs; this 0.1 µs), and a request counts a dozen. Made by `Metrics.children`, so
    that they are looked up anew when the series of a model have gone."""

    def __init__(self, metric: Labelled) -> None:
        self._metric = metric
        self._known: dict[tuple[str, ...], Labelled] = {}

    def of(self, *labels: str) -> Labelled:
        """The child of these labels."""
        child = self._known.get(labels)
        if child is None:
            child = self._known[labels] = self._metric.labels(*labels)
        return child

    def forget(self) -> None:
        """Look them up anew from now on."""
        self._known.clear()


class Metrics(EventMetrics, AgreementMetrics, StrategyMetrics, OverloadMetrics):
    """The metrics, each an attribute. A fresh registry each, so that tests do not share."""

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        max_model_labels: int = model_labels.DEFAULT_MAX,
    ) -> None:
        self.registry = registry or CollectorRegistry()
        self.models = model_labels.ModelLabels(max_model_labels)
        """The values of the label `model`."""
        self._children: list[Children[Any]] = []
        self._decisions()
        self._requests()
        self._booking()
        self._process()
        self._tokenizer()
        self._source_states()
        self._source_contact()
        self._events()
        self._index()
        self._levers()
        self._snapshots()
        self._discovery()
        self._engine_tokens()
        self._engine_reuse()
        self._scheduling()
        self._strategies()
        self._overload()
        self.models.cover(self._of_models(), self._forget_children)

    def children(self, metric: Labelled) -> Children[Labelled]:
        """The children of one of these metrics, to be kept."""
        made = Children(metric)
        self._children.append(made)
        return made

    def forget_pod(self, key: str) -> None:
        """Take the series of a pod that is gone out of what decisions count.

        Those of event sync are removed by the feed of each source.
        """
        for metric in (self.shadow_picks, self.promises):
            metric.remove_by_labels({"pod": key})

    def _forget_children(self) -> None:
        for made in self._children:
            made.forget()

    def _of_models(self) -> Iterator[MetricWrapperBase]:
        """What is counted by model. The other two follow the pods: who sets them removes them."""
        for metric in vars(self).values():
            if metric in (self.pods, self.indexer_status):
                continue
            if isinstance(metric, MetricWrapperBase) and "model" in metric._labelnames:
                yield metric

    def _decisions(self) -> None:
        """AIBrix's names, kept so that its dashboards go on."""
        self.routing_decisions = self._counter(
            "aibrix_prefix_cache_routing_decisions_total",
            "Decisions by the share of the prompt that the chosen pod holds.",
            "model",
            "match_percent_bucket",
            "using_kv_sync",
        )
        self.routing_latency = self._seconds(
            "aibrix_prefix_cache_routing_latency_seconds",
            "From the last byte of a body to its decision.",
            "model",
            "using_kv_sync",
        )
        self.routing_selection = self._counter(
            "aibrix_prefix_cache_routing_selection_total",
            "Decisions by what made the choice (selection) and by strategy.",
            "model",
            "selection",
            "using_kv_sync",
            "strategy",
        )
        self.routing_errors = self._counter(
            "aibrix_prefix_cache_routing_errors_total",
            "Requests answered with an error of this server.",
            "model",
            "error_type",
            "using_kv_sync",
        )
        self.load_imbalance = self._counter(
            "aibrix_prefix_cache_load_imbalance_total",
            "Decisions of prefix-cache-classic made by load, because pods were out of balance.",
            "model",
            "using_kv_sync",
        )
        self.indexer_status = self._gauge(
            "aibrix_prefix_cache_indexer_status",
            "1 for the index that decides: events (sync) or predictions alone (local).",
            "model",
            "indexer_type",
        )
        self.prompt_tokens = self._counter(
            "aibrix_extproc_prompt_tokens_total", "Prompt tokens of decided requests.", "model"
        )
        self.matched_tokens = self._counter(
            "aibrix_extproc_matched_tokens_total",
            "Prompt tokens that the chosen pod is expected to reuse.",
            "model",
        )

    def _requests(self) -> None:
        self.streams = self._gauge("aibrix_extproc_streams", "Requests open now.")
        self.inflight_bytes = self._gauge(
            "aibrix_extproc_inflight_body_bytes", "Bytes of request bodies held now."
        )
        self.requests = self._counter(
            "aibrix_extproc_requests_total",
            "Requests by outcome: picked, passed, refused, answered, left (before an outcome).",
            "outcome",
        )
        self.passed = self._counter(
            "aibrix_extproc_passed_total",
            "Requests passed on without a pick, by reason.",
            "reason",
        )
        self.fallbacks = self._counter(
            "aibrix_extproc_fallback_total",
            "Requests routed by load because their tokens were not known, by reason.",
            "reason",
        )
        self.decision_basis = self._counter(
            "aibrix_extproc_decision_basis_total",
            "Picks by what they rest on: prefix, or load alone and why. The sum is all picks.",
            "basis",
        )
        self.report_mode = self._counter(
            "aibrix_extproc_report_mode_requests_total",
            "Requests that make the engine announce its hits again (kv_cache_report_mode: full).",
        )

    def _booking(self) -> None:
        self.reservations_expired = self._counter(
            "aibrix_extproc_reservations_expired_total",
            "Requests that left the ledger of load by time, their end not seen.",
        )
        self.reservations_dropped = self._counter(
            "aibrix_extproc_reservations_dropped_total",
            "Requests that left the ledger of load early, because too many are in it.",
        )
        self.prompts_cut = self._counter(
            "aibrix_extproc_prompts_cut_total",
            "Prompts of which only the leading tokens were matched, because they are longer.",
        )
        self.predictions_evicted = self._counter(
            "aibrix_extproc_predictions_evicted_total",
            "Predicted blocks dropped before their time, because too many are held.",
        )

    def _process(self) -> None:
        self.tls_reloads = self._counter(
            "aibrix_extproc_tls_reloads_total",
            "Changes of the gRPC port's certificate files: renewed, failed.",
            "result",
        )
        self.tls_broken = self._gauge(
            "aibrix_extproc_tls_renewal_broken",
            "1 while the certificate files cannot be used, and what was read before is.",
        )
        self.faults = self._counter(
            "aibrix_extproc_faults_total",
            "Faults of this server itself that it survived, by where they happened.",
            "where",
        )
        # Shown at 0 from the start: Prometheus sees no rise in a series that begins at 1, and the
        # alert on faults is about the first one.
        for where in FAULT_PLACES:
            self.faults.labels(where)
        self.passed.labels("internal_error")
        self.log_lines_dropped = self._counter(
            "aibrix_extproc_log_lines_dropped_total",
            "Log lines left out, because one place in the code wrote too many.",
        )
        self.live_cut = self._counter(
            "aibrix_extproc_live_cut_total",
            "Viewers of the live page sent away: slow (did not read), too_many.",
            "reason",
        )
        self.loop_lag = self._gauge(
            "aibrix_extproc_event_loop_lag_seconds", "Last measured delay of the event loop."
        )

    def _tokenizer(self) -> None:
        self.tokenizer_latency = self._seconds(
            "aibrix_extproc_tokenizer_seconds", "One call of a tokenizer.", "api"
        )
        self.tokenizer_cache = self._counter(
            "aibrix_extproc_tokenizer_cache_total",
            "Look-ups of the prompt cache: hit, miss, shared (an equal call was under way).",
            "result",
        )
        self.tokenizer_cache_bytes = self._gauge(
            "aibrix_extproc_tokenizer_cache_bytes", "Size of the prompt cache."
        )
        self.token_prefixes = self._counter(
            "aibrix_extproc_token_prefix_total",
            "Prompts not in the cache: enough known to decide, too little (short), none.",
            "result",
        )
        self.token_prefix_wrong = self._counter(
            "aibrix_extproc_token_prefix_wrong_total",
            "Known prefixes that the real tokens did not begin with.",
        )
        self.tokenized_later = self._counter(
            "aibrix_extproc_tokenized_later_total",
            "Prompts tokenized after their decision: done, failed, dropped (too many under way).",
            "result",
        )
        self.conversation_cache_bytes = self._gauge(
            "aibrix_extproc_conversation_cache_bytes", "Size of the memory of conversations."
        )
        self.tokenizer_failures = self._counter(
            "aibrix_extproc_tokenizer_failures_total", "Failed calls, by reason.", "reason"
        )
        self.tokenizer_breaker_open = self._gauge(
            "aibrix_extproc_tokenizer_breakers_open", "Endpoints that are left alone now."
        )

    def _levers(self) -> None:
        self.levers = self._gauge(
            "aibrix_extproc_lever",
            "Levers that are not at their default: 1, or how many pods are out.",
            "lever",
        )
        self.lever_pulls = self._counter(
            "aibrix_extproc_lever_pulls_total", "Times a lever was moved.", "lever"
        )
        self.shadow_picks = self._counter(
            "aibrix_extproc_shadow_picks_total",
            "Picks of shadow mode, which no header told anybody, by the pod.",
            "pod",
        )

    def _snapshots(self) -> None:
        self.snapshots_opened = self._counter(
            "aibrix_kv_snapshots_opened_total",
            "Snapshots looked for at start, by origin (file, peer) and what came of it.",
            "origin",
            "result",
        )
        self.snapshot_sources = self._counter(
            "aibrix_kv_snapshot_sources_total",
            "Sources of the snapshot found at start, by what became of them.",
            "result",
        )
        self.snapshot_saves = self._counter(
            "aibrix_kv_snapshot_saves_total", "Times the index was saved, or was not.", "result"
        )
        self.snapshot_saved_at = self._gauge(
            "aibrix_kv_snapshot_saved_timestamp_seconds",
            "When the index was last saved, since the epoch; 0: not yet.",
        )
        self.snapshot_bytes = self._gauge(
            "aibrix_kv_snapshot_bytes", "Size of the snapshot last saved."
        )

    def _discovery(self) -> None:
        self.pods = self._gauge("aibrix_extproc_pods", "Known pods.", "model", "ready")
        self.discovery_errors = self._counter(
            "aibrix_extproc_discovery_errors_total",
            "Listings, watches, files and probes that failed, by reason.",
            "reason",
        )
