"""What was held when engines took their requests, counted beside what was matched at the decision.

Owns the metrics of both, the difference by cause, and the totals for the debug page. Which requests
are followed, and what is known of them, is `following`'s.
"""

from collections.abc import Iterator
from typing import Any, Final

from aibrix_extproc.agreement.following import Came, Cause, Follow, Following, Scheduled
from aibrix_extproc.metrics import Metrics

MORE: Final = "more"
LESS: Final = "less"


class _Totals:
    """Of one model, since the start. Tokens."""

    def __init__(self) -> None:
        self.requests = self.prompt_tokens = self.decided_tokens = self.matched_tokens = 0
        self.gaps: dict[str, int] = {}

    def add(self, one: Scheduled) -> None:
        self.requests += 1
        self.prompt_tokens += one.prompt_tokens
        self.decided_tokens += one.decided_tokens
        self.matched_tokens += one.matched_tokens
        for gap in one.gaps:
            self.gaps[gap.cause] = self.gaps.get(gap.cause, 0) + gap.tokens

    def page(self) -> dict[str, Any]:
        prompt_tokens = max(1, self.prompt_tokens)
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "share_at_decision": round(self.decided_tokens / prompt_tokens, 4),
            "share_at_scheduling": round(self.matched_tokens / prompt_tokens, 4),
            "difference_by_cause": {
                cause: round(tokens / prompt_tokens, 4)
                for cause, tokens in sorted(self.gaps.items())
            },
        }


class Scheduling:
    """Counts followed requests."""

    def __init__(self, metrics: Metrics, following: Following) -> None:
        self._metrics = metrics
        self._following = following
        self._totals: dict[str, _Totals] = {}
        metrics.scheduled_followed.set_function(lambda: len(following))
        self._requests = {came: metrics.scheduled_requests.labels(came) for came in Came}
        self._prompt_tokens = metrics.children(metrics.scheduled_prompt_tokens)
        self._matched_tokens = metrics.children(metrics.scheduled_matched_tokens)
        self._gap_tokens = metrics.children(metrics.scheduled_gap_tokens)

    def tick(self, now: float) -> Iterator[tuple[Follow, Scheduled | None]]:
        """Each followed request that is settled, once it is counted."""
        for follow, came, scheduled in self._following.settle(now):
            self._requests[came].inc()
            if scheduled is not None:
                self._count(follow.trip.name, scheduled)
            yield follow, scheduled

    def _count(self, name: str, one: Scheduled) -> None:
        model = self._metrics.models.of(name)
        self._prompt_tokens.of(model).inc(one.prompt_tokens)
        self._matched_tokens.of(model).inc(one.matched_tokens)
        for gap in one.gaps:
            direction = MORE if gap.tokens > 0 else LESS
            self._gap_tokens.of(model, gap.cause, direction).inc(abs(gap.tokens))
        self._totals.setdefault(model, _Totals()).add(one)

    def page(self) -> dict[str, Any]:
        """Plain values, by model."""
        return {model: totals.page() for model, totals in sorted(self._totals.items())}


def main_cause(one: Scheduled) -> Cause | None:
    """The cause of most of the difference; None where there is none."""
    gap = max(one.gaps, key=lambda gap: abs(gap.tokens), default=None)
    return None if gap is None else gap.cause
