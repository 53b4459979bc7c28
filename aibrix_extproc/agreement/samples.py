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
    """Decided by a known prefix, so that the prediction was a lower bound, and it held."""
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
        return self.predicted.matched_tokens - self.usage.cached_tokens


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
    if not predicted.is_prefix and usage.prompt_tokens != predicted.prompt_tokens:
        return Compared.LENGTH
    if is_other_pod:
        return Compared.OTHER_POD
    difference = predicted.matched_tokens - usage.cached_tokens
    if predicted.is_prefix and difference <= 0:
        return Compared.PREFIX
    return Compared.LESS if difference > 0 else Compared.MORE if difference else Compared.EQUAL


class Samples:
    """The last samples, oldest first."""

    def __init__(self) -> None:
        self._kept: deque[Sample] = deque(maxlen=KEPT_SAMPLES)

    def add(self, sample: Sample) -> None:
        """Keep it; the oldest goes."""
        self._kept.append(sample)

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
