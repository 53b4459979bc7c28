"""The metrics of event sync and its index: a part of `metrics`, which has the rules for labels."""

from aibrix_extproc.metric_agreement import MetricMakers


class EventMetrics(MetricMakers):
    """What engines tell, and what is held of it."""

    def _source_states(self) -> None:
        self.source_state = self._gauge(
            "aibrix_kv_source_state", "1 for the state that a source is in.", "pod", "rank", "state"
        )
        self.source_stale = self._gauge(
            "aibrix_kv_source_stale",
            "1 where a source has been silent for too long to be believed.",
            "pod",
            "rank",
        )
        self.source_waiting_bytes = self._gauge(
            "aibrix_kv_source_waiting_bytes",
            "Memory of the live batches that wait for a replay.",
            "pod",
            "rank",
        )
        self.source_lag = self._gauge(
            "aibrix_kv_source_lag_seconds",
            "Between an engine's time stamp on the last batch and its arrival.",
            "pod",
            "rank",
        )
        self.gaps = self._counter(
            "aibrix_kv_gaps_total", "Holes seen in a source's sequence.", "pod", "rank"
        )
        self.restarts = self._counter(
            "aibrix_kv_restarts_total", "Restarts of an engine seen in its sequence.", "pod", "rank"
        )

    def _source_contact(self) -> None:
        self.replays = self._counter(
            "aibrix_kv_replays_total",
            "Replays by result: complete, partial, failed, none (no replay port).",
            "pod",
            "rank",
            "result",
        )
        self.disconnects = self._counter(
            "aibrix_kv_disconnects_total",
            "Connections of a source's event stream that ended.",
            "pod",
            "rank",
        )
        self.handshake_failures = self._counter(
            "aibrix_kv_handshake_failures_total",
            "Connections to an engine's port that came to no ZMQ conversation.",
            "pod",
            "rank",
        )
        self.source_clears = self._counter(
            "aibrix_kv_source_clears_total",
            "Times a source was emptied, by reason.",
            "reason",
        )

    def _events(self) -> None:
        self.batches = self._counter("aibrix_kv_batches_total", "Batches received.", "pod", "rank")
        self.blocks_stored = self._counter("aibrix_kv_blocks_stored_total", "Blocks announced.")
        self.blocks_removed = self._counter("aibrix_kv_blocks_removed_total", "Blocks removed.")
        self.skipped_events = self._counter(
            "aibrix_kv_skipped_events_total", "Events that could not be used, by reason.", "reason"
        )
        self.bad_frames = self._counter(
            "aibrix_kv_bad_frames_total",
            "ZMQ messages that are no event batch, by reason.",
            "reason",
        )

    def _index(self) -> None:
        self.index_bytes = self._gauge("aibrix_kv_index_bytes", "Size of the index.")
        self.index_blocks = self._gauge("aibrix_kv_index_blocks", "Distinct blocks in the index.")
        self.index_placements = self._gauge(
            "aibrix_kv_index_placements", "Blocks in sources, by medium.", "medium"
        )
        self.index_orphans = self._gauge("aibrix_kv_index_orphans", "Parked blocks.")
        self.index_backend_info = self._gauge(
            "aibrix_kv_index_backend_info",
            "1 for the index that serves: core (compiled) or reference (plain Python).",
            "backend",
        )
        self.index_sources = self._gauge("aibrix_kv_index_sources", "Sources in the index.")
        self.index_full_sources = self._gauge(
            "aibrix_kv_index_full_sources",
            "Sources of which blocks were left out, because the index is full.",
        )
