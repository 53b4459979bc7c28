"""The metrics of single strategies: a part of `metrics`."""

from aibrix_extproc.metric_agreement import MetricMakers


class StrategyMetrics(MetricMakers):
    """Where a strategy could not go by its own rule."""

    def _strategies(self) -> None:
        self.strategy_fallbacks = self._counter(
            "aibrix_extproc_strategy_fallback_total",
            "Decisions for which a strategy lacked what it goes by, by reason.",
            "strategy",
            "reason",
        )
