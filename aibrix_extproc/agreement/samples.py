"""One decision against the engine's own count: what was predicted of a prompt, and what was reused.

Pure. Owns the verdict on one sample and the ring of the last ones for the debug page.
"""

from collections import deque
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from aibrix_extproc.agreement.usage import NoUsage, Usage

KEPT_SAMPLES: Final = 100


class Compared(StrEnum):
    """How a sample came out; `NoUsage` has the reasons for none. Labels of a metric."""

    EQUAL = "equal"
    MORE = "more"
    """The engine reused more than was predicted: events or tokens are missing here."""
    LESS = "less"
    """It reused less: the index or a prediction believed what was not so, or no longer."""
    LENGTH = "length"
    """It counted another number of prompt tokens: its tokenizer or chat template is another."""
    PREFIX = "prefix"
    """Decided by a known prefix, so that the prediction was a lower bound, and it held. What was
    there when the engine took the request is not known: the request was not followed."""
    NO_TOKENS = "no_tokens"
    """Decided without tokens: there was no prediction."""
    OTHER_POD = "other_pod"
    """Another pod than the chosen one answered."""


RESULTS: Final = (*Compared, *NoUsage)


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was believed when the request was decided. Counts are tokens."""

    request_id: str
    model: str
    """The name that the client sent, which is a known one."""
    pod: str
    """`namespace/name` of the chosen one."""
    prompt_tokens: int
    matched_tokens: int
    tokens_known: bool
    is_prefix: bool = False
    """`matched_tokens` is of a known prefix alone, and `prompt_tokens` an estimate."""
    scheduled_tokens: int | None = None
    """What was believed when the engine took the request, with the whole prompt known; None where
    the request was not followed. Then `prompt_tokens` is no estimate."""
    cause: str | None = None
    """Why that is not `matched_tokens`, for the most part."""

    @property
    def expected_tokens(self) -> int:
        """What is compared with the engine's own count."""
        at_scheduling = self.scheduled_tokens
        return self.matched_tokens if at_scheduling is None else at_scheduling

    @property
    def is_lower_bound(self) -> bool:
        """More may have been held than is known."""
        return self.is_prefix and self.scheduled_tokens is None


@dataclass(frozen=True, slots=True)
class Sample:
    """One comparison."""

    predicted: Predicted
    result: Compared | NoUsage
    usage: Usage | None
    served_by: str | None
    """`ip:port`, where Envoy said it."""

    @property
    def difference_tokens(self) -> int | None:
        """Predicted minus actual; None where there is nothing to compare."""
        if self.usage is None or self.result not in _DIFFER:
            return None
        return self.predicted.expected_tokens - self.usage.cached_tokens


_DIFFER: Final = (Compared.EQUAL, Compared.MORE, Compared.LESS)


def compare(
    predicted: Predicted, found: Usage | NoUsage, served_by: str | None, *, is_other_pod: bool
) -> Sample:
    """The sample of one answer."""
    if isinstance(found, NoUsage):
        return Sample(predicted, found, None, served_by)
    return Sample(predicted, _result(predicted, found, is_other_pod), found, served_by)


def _result(predicted: Predicted, usage: Usage, is_other_pod: bool) -> Compared:
    if not predicted.tokens_known:
        return Compared.NO_TOKENS
    if not predicted.is_lower_bound and usage.prompt_tokens != predicted.prompt_tokens:
        return Compared.LENGTH
    if is_other_pod:
        return Compared.OTHER_POD
    difference = predicted.expected_tokens - usage.cached_tokens
    if predicted.is_lower_bound and difference <= 0:
        return Compared.PREFIX
    return Compared.LESS if difference > 0 else Compared.MORE if difference else Compared.EQUAL


class Samples:
    """The last samples, oldest first."""

    def __init__(self) -> None:
        self._kept: deque[Sample] = deque(maxlen=KEPT_SAMPLES)

    def add(self, sample: Sample) -> None:
        """Keep it; the oldest goes."""
        self._kept.append(sample)

    def by_cause(self) -> dict[str, dict[str, Any]]:
        """Of those that were followed, by the cause of what came between decision and scheduling:
        how many, and their mean differences from the engine's own count, in tokens."""
        of_cause: dict[str, list[Sample]] = {}
        for sample in self._kept:
            if sample.usage is not None and sample.predicted.scheduled_tokens is not None:
                of_cause.setdefault(sample.predicted.cause or "none", []).append(sample)
        return {cause: _means(found) for cause, found in sorted(of_cause.items())}

    def page(self) -> list[dict[str, Any]]:
        """Plain values, the newest first."""
        return [
            {
                **asdict(sample.predicted),
                "result": str(sample.result),
                "actual_prompt_tokens": sample.usage and sample.usage.prompt_tokens,
                "cached_tokens": sample.usage and sample.usage.cached_tokens,
                "predicted_minus_actual": sample.difference_tokens,
                "served_by": sample.served_by,
            }
            for sample in reversed(self._kept)
        ]


def _means(samples: list[Sample]) -> dict[str, Any]:
    """Predicted minus the engine's own, at the decision and at scheduling."""
    decided = scheduled = 0
    for sample in samples:
        cached = sample.usage.cached_tokens if sample.usage else 0
        decided += sample.predicted.matched_tokens - cached
        scheduled += sample.predicted.expected_tokens - cached
    number = len(samples)
    return {
        "requests": number,
        "decision_minus_engine": round(decided / number, 1),
        "scheduling_minus_engine": round(scheduled / number, 1),
    }
