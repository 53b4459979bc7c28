"""Which requests are sampled, and what is counted of a sample.

Owns the draw, the metrics of predicted against actual tokens, and the log line where Envoy does
not hand over the answers that are asked for. What an answer says is read by `usage`, judged by
`samples`.
"""

import logging
from random import Random
from typing import Any, Final

from aibrix_extproc.agreement.following import Scheduled
from aibrix_extproc.agreement.samples import Compared, Predicted, Samples, compare
from aibrix_extproc.agreement.scheduling import main_cause
from aibrix_extproc.agreement.trips import Served, Trip
from aibrix_extproc.agreement.usage import NoUsage, Usage
from aibrix_extproc.extproc.openai import ParsedBody
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics

_THING: Final = "answers of sampled requests"
_NOT_SENT: Final = 3
"""In a row, before it is said: a client that leaves looks alike."""
_DETAILS: Final = "token counts of"


class Sampling:
    """Draws requests, and takes what their answers say."""

    def __init__(self, share: float, metrics: Metrics, rng: Random) -> None:
        self._share = share
        self._metrics = metrics
        self._draw = rng.random
        self._samples = Samples()
        self._not_sent = 0
        self._states = StateLog(logging.getLogger("aibrix_extproc.agreement"))
        self.lengths_differ: set[str] = set()
        """Pods whose last sample counted another number of prompt tokens."""

    def wants(self, parsed: ParsedBody) -> bool:
        """Whether this request's answer is to be read. Nothing is looked at unless it is drawn.

        Left out are answers that would say nothing of one prompt: several prompts or choices, and
        streams whose request does not ask for a usage.
        """
        if self._draw() >= self._share:
            return False
        prompt = parsed.prompt
        if prompt is None or prompt.prompts > 1 or "n" in prompt.fields:
            return False
        if parsed.stream:
            return b'"include_usage"' in bytes(prompt.fields.get("stream_options", b""))
        return True

    def observed(self, trip: Trip, found: Usage | NoUsage) -> None:
        """What the answer of a sampled request said."""
        scheduled = trip.scheduled if isinstance(trip.scheduled, Scheduled) else None
        predicted = Predicted(
            request_id=trip.request_id,
            model=trip.name,
            pod=trip.chosen.key,
            prompt_tokens=trip.prompt_tokens if scheduled is None else scheduled.prompt_tokens,
            matched_tokens=trip.matched_tokens,
            tokens_known=trip.tokens_known,
            is_prefix=trip.is_prefix,
            scheduled_tokens=None if scheduled is None else scheduled.matched_tokens,
            cause=None if scheduled is None else main_cause(scheduled),
        )
        is_other = trip.served in (Served.OTHER, Served.STRANGER)
        sample = compare(predicted, found, trip.served_by, is_other_pod=is_other)
        self._samples.add(sample)
        model = self._metrics.models.of(trip.name)
        self._metrics.usage_samples.labels(model, sample.result).inc()
        difference = sample.difference_tokens
        if difference is not None and sample.usage is not None:
            self._metrics.prediction_error.labels(model).observe(difference)
            self._metrics.sampled_predicted.labels(model).inc(predicted.expected_tokens)
            self._metrics.sampled_cached.labels(model).inc(sample.usage.cached_tokens)
        self._tell(trip, sample.result)

    def forget_pod(self, pod: str) -> None:
        """It is gone, or another engine by now."""
        self.lengths_differ.discard(pod)
        self._states.forget(f"{_DETAILS} {pod}")

    def by_cause(self) -> dict[str, Any]:
        """Of the last samples, predicted minus actual by cause."""
        return self._samples.by_cause()

    def page(self) -> list[dict[str, Any]]:
        """The last samples, newest first."""
        return self._samples.page()

    def _tell(self, trip: Trip, result: Compared | NoUsage) -> None:
        self._not_sent = self._not_sent + 1 if result is NoUsage.NOT_SENT else 0
        if not self._not_sent:
            self._states.changed(_THING, "ok")
        elif self._not_sent >= _NOT_SENT:
            why = "Envoy does not hand them over; set allow_mode_override: true (docs/envoy.md)"
            self._states.changed(_THING, "not sent", why, logging.INFO)
        pod, thing = trip.pod.key, f"{_DETAILS} {trip.pod.key}"
        if result is Compared.LENGTH:
            self.lengths_differ.add(pod)
            why = "its tokenizer or chat template is another than the one that prompts go through"
            self._states.changed(thing, "other number of prompt tokens", why)
        elif result is NoUsage.NO_DETAILS:
            why = "set --enable-prompt-tokens-details on the engine"
            self._states.changed(thing, "without cached_tokens", why, logging.INFO)
        elif result in (Compared.EQUAL, Compared.MORE, Compared.LESS):
            self.lengths_differ.discard(pod)
            self._states.changed(thing, "ok")
