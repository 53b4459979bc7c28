"""What many outcomes come to: counts, hit ratio, percentiles. Pure."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from aibrix_extproc.loadtest.client import Outcome


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one run, as clients saw it. A figure nobody can know is None."""

    requests: int
    errors: int
    errors_by_reason: dict[str, int] = field(default_factory=dict)
    duration_s: float = 0.0
    requests_per_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Of the prompt tokens, as the engines' `usage` says; None where one did not say."""
    answer_tokens: int = 0
    ttft_p50_s: float | None = None
    ttft_p90_s: float | None = None
    duration_p50_s: float | None = None
    duration_p90_s: float | None = None

    @property
    def hit_ratio(self) -> float | None:
        """The share of prompt tokens that engines reused, 0 to 1."""
        return ratio(self.cached_tokens, self.prompt_tokens)

    def to_json(self) -> dict[str, Any]:
        """Every field, and the hit ratio."""
        return asdict(self) | {"hit_ratio": self.hit_ratio}


def summarise(outcomes: Sequence[Outcome], duration_s: float) -> Summary:
    """The figures of a run that took `duration_s`. Times are those of answered requests."""
    answered = [o for o in outcomes if o.error is None]
    reasons = Counter(o.error for o in outcomes if o.error is not None)
    says = [o.cached_tokens for o in answered if o.cached_tokens is not None]
    first = [o.ttft_s for o in answered if o.ttft_s is not None]
    whole = [o.duration_s for o in answered]
    return Summary(
        requests=len(outcomes),
        errors=sum(reasons.values()),
        errors_by_reason=dict(reasons.most_common()),
        duration_s=duration_s,
        requests_per_s=len(outcomes) / duration_s if duration_s else 0.0,
        prompt_tokens=sum(o.prompt_tokens for o in answered),
        cached_tokens=sum(says) if answered and len(says) == len(answered) else None,
        answer_tokens=sum(o.answer_tokens for o in answered),
        ttft_p50_s=percentile(first, 50),
        ttft_p90_s=percentile(first, 90),
        duration_p50_s=percentile(whole, 50),
        duration_p90_s=percentile(whole, 90),
    )


def percentile(values: Iterable[float], percent: float) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def ratio(part: float | None, whole: float | None) -> float | None:
    """None where either is unknown or there is no whole."""
    return part / whole if part is not None and whole else None
