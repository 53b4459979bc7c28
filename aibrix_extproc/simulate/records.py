"""What is written down of a run, and the figures that follow from it. Pure."""

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from aibrix_extproc.figures import GAP_RESOLUTION_S, Distribution, plain, spread

NO_POD: Final = -1
NO_GATEWAY: Final = -1


@dataclass(slots=True)
class Record:
    """One request. Times in virtual seconds, lengths in tokens."""

    pod: int
    """`NO_POD` before it has one."""
    arrived_s: float
    prompt_tokens: int
    output_tokens: int
    matched_tokens: int = 0
    """What the router believed would be reused when it decided."""
    cached_tokens: int = 0
    """What the engine reused, at its first admission."""
    first_token_s: float = math.nan
    ended_s: float = math.nan
    gateway: int = 0
    """Which one decided; `NO_GATEWAY` where none did."""
    resent: int = 0
    """How often it was lost with its pod and sent anew. Pod, reuse and first token are those of
    the last time."""


@dataclass(frozen=True, slots=True)
class PodTotals:
    """What one pod did."""

    requests: int
    busy_share: float
    """Of the run's time in which a step was under way."""
    prefill_tokens: int
    """Prompt tokens that it computed."""
    preemptions: int


@dataclass(slots=True)
class Run:
    """All that was written down."""

    strategy: str
    looks_at_prompts: bool = True
    """Whether the strategy does."""
    records: list[Record] = field(default_factory=list)
    gaps: Counter[int] = field(default_factory=Counter)
    """Time between two tokens of an answer, in units of GAP_RESOLUTION_S → how often."""
    pods: list[PodTotals] = field(default_factory=list)
    duration_s: float = 0.0
    """Until the last answer ended."""
    open_area_s: float = 0.0
    """The number of open requests, integrated over the run's time as it went."""
    bound_tokens: int | None = None
    """Prompt tokens that one infinite cache would have reused; None where it was not asked."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run."""

    strategy: str
    requests: int
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    hit_ratio: float
    """The engines' own: prompt tokens reused at the first admission, of all prompt tokens. Full
    blocks only, and never a prompt's last token."""
    predicted_hit_ratio: float | None
    """What the router believed when it decided; None where the strategy looks at no prompt."""
    bound_hit_ratio: float | None
    """Of one cache that forgets nothing and knows each prompt at once."""
    ttft_s: Distribution
    end_to_end_s: Distribution
    inter_token_s: Distribution
    open_requests: float
    """Mean number of requests that have come and are not answered."""
    requests_spread: float
    """Requests of the pod that had most, by the mean."""
    prefill_spread: float
    """The same for prompt tokens computed."""
    busy_share_max: float
    busy_share_mean: float
    preemptions: int
    goodput: float | None = None
    """Share of the requests that met the SLO; None where none was given."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; a figure that does not exist is null."""
        return {name: plain(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep to count as good."""

    ttft_s: float
    inter_token_s: float
    """Mean over its answer; an answer of one token has none, and keeps it."""

    def met(self, record: Record) -> bool:
        """Whether this one kept it."""
        gaps = max(1, record.output_tokens - 1)
        decode_s = record.ended_s - record.first_token_s
        in_time = record.first_token_s - record.arrived_s <= self.ttft_s
        return in_time and decode_s / gaps <= self.inter_token_s


def summarise(run: Run, slo: Slo | None = None) -> Summary:
    """The figures of a run with at least one request."""
    records = run.records
    prompt_tokens = sum(record.prompt_tokens for record in records)
    bound = run.bound_tokens
    return Summary(
        strategy=run.strategy,
        requests=len(records),
        duration_s=run.duration_s,
        prompt_tokens=prompt_tokens,
        output_tokens=sum(record.output_tokens for record in records),
        hit_ratio=sum(record.cached_tokens for record in records) / prompt_tokens,
        predicted_hit_ratio=_predicted(run) if run.looks_at_prompts else None,
        bound_hit_ratio=None if bound is None else bound / prompt_tokens,
        ttft_s=Distribution.of([r.first_token_s - r.arrived_s for r in records]),
        end_to_end_s=Distribution.of([r.ended_s - r.arrived_s for r in records]),
        inter_token_s=Distribution.of_counts(run.gaps, GAP_RESOLUTION_S),
        open_requests=run.open_area_s / run.duration_s,
        requests_spread=spread([pod.requests for pod in run.pods]),
        prefill_spread=spread([pod.prefill_tokens for pod in run.pods]),
        busy_share_max=max(pod.busy_share for pod in run.pods),
        busy_share_mean=sum(pod.busy_share for pod in run.pods) / len(run.pods),
        preemptions=sum(pod.preemptions for pod in run.pods),
        goodput=None if slo is None else sum(map(slo.met, records)) / len(records),
    )


def _predicted(run: Run) -> float | None:
    """Of the requests that a gateway decided."""
    decided = [record for record in run.records if record.gateway != NO_GATEWAY]
    tokens = sum(record.prompt_tokens for record in decided)
    return sum(record.matched_tokens for record in decided) / tokens if tokens else None
