"""The room's front: decided requests in, verdicts, metrics and log lines out.

Joins picks, samples and promises with the index, the sources and the clock. Each request costs it
a few microseconds; looks at the index are bounded in number and made by `tick`, off the path of
requests. Belongs to the event loop's thread, except `emptied`.
"""

import logging
from array import array
from collections.abc import Callable, Container, Mapping
from random import Random
from typing import Any, Final

from aibrix_extproc.agreement.fingerprints import Fingerprints
from aibrix_extproc.agreement.following import Following
from aibrix_extproc.agreement.promises import Found, Kind, Look, Pending, Promise, Promises
from aibrix_extproc.agreement.reuse import Reuse
from aibrix_extproc.agreement.sampling import Sampling
from aibrix_extproc.agreement.scheduling import Scheduling
from aibrix_extproc.agreement.trips import Picks, Served, Trip
from aibrix_extproc.agreement.usage import NoUsage, Usage
from aibrix_extproc.agreement.verdict import Evidence, Verdicts, causes
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.extproc.openai import ParsedBody
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.index.results import GROUP_NOT_INDEXED, UNNAMED_ADAPTER
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.settings import Settings

DEFAULT_BLOCK_SIZE: Final = 16
_JUDGE_EVERY_S: Final = 30.0
"""Where nothing new was seen: what is old is forgotten."""


class Agreement:
    """Whether engines do what is believed of them."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: Registry,
        manager: SourceManager,
        index: PrefixIndex,
        ledger: Ledger,
        predictions: Predictions,
        clock: Callable[[], float],
        rng: Random | None = None,
    ) -> None:
        """`clock` is the ledger's."""
        self._metrics = metrics
        self._registry = registry
        self._manager = manager
        self._index = index
        self._clock = clock
        self.fingerprints = Fingerprints()
        """Of the pods' tokenizers: others fill it."""
        self.reuse: Reuse | None = None
        """Takes decided requests, once it runs."""
        self._picks = Picks(metrics, registry.pods, manager, ledger, predictions)
        self._sampling = Sampling(settings.usage_sample, metrics, rng or Random())
        self._following = Following(manager, predictions, self._matched, settings.max_prompt_tokens)
        self._scheduling = Scheduling(metrics, self._following)
        self._promises = Promises()
        self._verdicts = Verdicts()
        self._judge_at = float("-inf")
        self._told: dict[tuple[str, Kind], dict[str, Any]] = {}
        self._states = StateLog(logging.getLogger("aibrix_extproc.agreement"), good="agree")

    # -- one request --------------------------------------------------------------------------

    def samples(self, parsed: ParsedBody) -> bool:
        """Whether the answer of this request is to be read."""
        return self._sampling.wants(parsed)

    def decided(self, trip: Trip, block_size: int, held: int, reusable: Mapping[int, int]) -> None:
        """A request goes to a pod, in whose blocks the index finds `held` of its prompt.

        `reusable`: source → tokens, with predictions.
        """
        self._following.begin(trip, block_size, held, reusable, self._clock())

    def learned(self, trip: Trip, ids: "array[int]", keys: "array[int]", block_size: int) -> None:
        """The tokens of a prompt that was decided by its prefix, and their keys."""
        self._following.learned(trip, ids, keys, block_size, self._clock())

    def ended(self, trip: Trip) -> None:
        """The answer is over, or will never be."""
        self._following.ended(trip, self._clock())

    def answered(self, trip: Trip, served_by: str | None, succeeded: bool) -> None:
        """The answer has begun. `succeeded`: with status 200, so that the prompt was computed."""
        now = self._clock()
        served = self._picks.served(trip, served_by, succeeded, now)
        if succeeded and served in (Served.HONOURED, Served.UNKNOWN):
            self._look_later(trip, now)
        self._following.answered(trip, succeeded, now)
        trip.forget_tokens()

    def observed(self, trip: Trip, found: Usage | NoUsage) -> None:
        """What the answer of a sampled request said of its tokens."""
        if isinstance(found, NoUsage) or not self._following.observed(trip, found):
            self._sampling.observed(trip, found)

    def _matched(self, trip: Trip, ids: "array[int]") -> int:
        """Leading blocks of a prompt in the source that serves it."""
        depths = self._index.match(trip.model, ids, lora=trip.adapter, cache_salt=trip.cache_salt)
        return depths.get(trip.source, 0)

    def _look_later(self, trip: Trip, now: float) -> None:
        if trip.ids is None or not self._promises.has_room(now):
            return
        if not self._manager.usable(trip.source):
            return
        self._promises.take(
            Promise(
                model=trip.model,
                pod=trip.pod.key,
                source=trip.source,
                ids=trip.ids,
                adapter=trip.adapter,
                cache_salt=trip.cache_salt,
                sequence=trip.sequence,
            ),
            now,
        )

    # -- looks --------------------------------------------------------------------------------

    def emptied(self, source: int) -> None:
        """A source was cleared or removed. From any thread."""
        self._promises.dropped(source)

    def tick(self) -> None:
        """Look at what is due, and say what has changed. A few times a second."""
        now = self._clock()
        for follow, scheduled in self._scheduling.tick(now):
            if scheduled is not None and self.reuse is not None:
                self.reuse.scheduled(
                    follow.trip.model, scheduled.prompt_tokens, scheduled.matched_tokens
                )
            if follow.usage is not None:
                self._sampling.observed(follow.trip, follow.usage)
        for pending in self._promises.void():
            self._settled(pending.promise, Found.VOID, now)
        due = self._promises.due(now)
        if due:
            full = self._index.stats().full_sources
            for pending in due:
                found = self._promises.settle(pending, self._look(pending, full), now)
                if found is not None:
                    self._settled(pending.promise, found, now)
            self._judge_at = min(self._judge_at, now)
        if now >= self._judge_at:
            self._judge_at = now + _JUDGE_EVERY_S
            for (model, kind), pods in self._verdicts.doubted(now).items():
                self._judge(model, kind, pods)

    def _look(self, pending: Pending, full: Container[int]) -> Look:
        promise = pending.promise
        source = promise.source
        try:
            size = self._index.block_size(source) or DEFAULT_BLOCK_SIZE
        except KeyError:  # gone meanwhile
            return Look(0, DEFAULT_BLOCK_SIZE, False, None)
        depths = self._index.match(
            promise.model, promise.ids, lora=promise.adapter, cache_salt=promise.cache_salt
        )
        is_believed = self._manager.usable(source) and source not in full
        return Look(depths.get(source, 0), size, is_believed, self._manager.sequence(source))

    def _settled(self, promise: Promise, found: Found, now: float) -> None:
        pod = self._registry.get(promise.pod)
        if pod is None:
            return
        self._metrics.promises.labels(promise.model, promise.pod, found).inc()
        self._verdicts.add(promise.model, promise.pod, promise.kind, found, now)

    # -- verdicts -----------------------------------------------------------------------------

    def _judge(self, model: str, kind: Kind, pods: list[str]) -> None:
        self._metrics.doubted_pods.labels(model, kind).set(len(pods))
        thing = f"tokens of {model} ({kind} requests) and its engines' events"
        if not pods:
            self._told.pop((model, kind), None)
            self._states.changed(thing, "agree")
            return
        silent = self._verdicts.is_silent(model, kind, pods)
        partly = self._verdicts.is_partly(model, kind, pods)
        likely = causes(kind, self._evidence(model, pods), silent=silent, partly=partly)
        self._told[model, kind] = {"kind": str(kind), "pods": pods, "likely_causes": list(likely)}
        what = "no event names what was sent" if silent else "events name other blocks than sent"
        why = f"{what} to {', '.join(pods)}; likely: {'; '.join(likely)}"
        self._states.changed(thing, f"disagree at {', '.join(pods)}", why)

    def _evidence(self, model: str, pods: list[str]) -> Evidence:
        return Evidence(
            pods_disagree=self.fingerprints.difference(model) is not None,
            lengths_differ=bool(self._sampling.lengths_differ.intersection(pods)),
            partial_sources=any(
                self._manager.state(candidate.source) is SourceState.PARTIAL
                for pod in map(self._registry.get, pods)
                if pod is not None
                for candidate in self._manager.candidates((pod,))
            ),
            unnamed_adapters=_counted(self._metrics, UNNAMED_ADAPTER),
            groups_not_indexed=_counted(self._metrics, GROUP_NOT_INDEXED),
        )

    # -- pods and pages -----------------------------------------------------------------------

    def on_pod(self, before: Pod | None, after: Pod | None) -> None:
        """Registry listener: of a pod that is gone, or another engine by now, nothing is held."""
        if before is None or (after is not None and after.identity == before.identity):
            return
        self._verdicts.forget_pod(before.key)
        self._sampling.forget_pod(before.key)
        for found in Found:
            self._metrics.remove(self._metrics.promises, before.model, before.key, found)
        if before.model not in self._verdicts.models():
            for kind in Kind:
                self._told.pop((before.model, kind), None)
                self._metrics.remove(self._metrics.doubted_pods, before.model, kind)

    def page(self) -> dict[str, Any]:
        """`/debug/agreement`: by model the warnings with their likely causes, the pods' promises
        and tokenizers, and the last samples. Plain values; no prompt and no token id."""
        models = self._verdicts.models() | set(self.fingerprints.models())
        return {
            "models": {model: self._model_page(model) for model in sorted(models)},
            "scheduling": self._scheduling.page(),
            "samples_by_cause": self._sampling.by_cause(),
            "samples": self._sampling.page(),
        }

    def _model_page(self, model: str) -> dict[str, Any]:
        difference = self.fingerprints.difference(model)
        return {
            "warnings": [told for (of, _), told in sorted(self._told.items()) if of == model],
            "promises": self._verdicts.page(model),
            "tokenizers": self.fingerprints.page(model),
            "tokenizers_that_differ": difference
            and {
                "in": difference.what,
                "pods": list(difference.odd),
                "from": list(difference.others),
            },
        }


def _counted(metrics: Metrics, reason: str) -> bool:
    """Whether events were skipped for this reason since the start."""
    samples = (sample for metric in metrics.skipped_events.collect() for sample in metric.samples)
    return any(
        sample.value > 0
        for sample in samples
        if sample.name.endswith("_total") and sample.labels.get("reason") == reason
    )
