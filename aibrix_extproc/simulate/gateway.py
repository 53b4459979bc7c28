"""The router on a virtual clock: the parts of one decision, in the order of `decide.Decider`.

Owns the glue: tokens are given instead of asked for, and candidates are the virtual pods. View,
strategy, booking, ledger, predictions, index and event sync are the server's own.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Final

from aibrix_extproc.agreement.trips import Trip
from aibrix_extproc.agreement.watch import Agreement
from aibrix_extproc.decide.booking import Booking
from aibrix_extproc.decide.plan import Plan
from aibrix_extproc.decide.prefills import Prefills
from aibrix_extproc.decide.view import BYTES_PER_TOKEN, KnownTokens, Viewer
from aibrix_extproc.discovery.pods import Pod, Rank, ServedModel
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.extproc.decides import Picked, RouteRequest
from aibrix_extproc.extproc.openai import ParsedBody
from aibrix_extproc.index import PrefixIndex, open_index
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.routing.ramp import Ramp
from aibrix_extproc.routing.types import Candidate, Strategy
from aibrix_extproc.settings import Settings
from aibrix_extproc.simulate.engine import Batch, VirtualEngine
from aibrix_extproc.simulate.scenario import Scenario
from aibrix_extproc.simulate.sources import Later, Saved, VirtualManager, VirtualSource
from aibrix_extproc.simulate.usage import VirtualUsage

MODEL: Final = "simulated"
_SERVED: Final = ServedModel(MODEL, MODEL)
_REQUEST: Final = RouteRequest("POST", "/v1/completions", {}, b"", "")


@dataclass(frozen=True, slots=True)
class Start:
    """What a process has to begin with."""

    has_replay: bool = True
    """Whether it finds replay ports."""
    saved: Mapping[int, Saved] = field(default_factory=dict)
    """By pod: of the process before it."""


class Gateway:
    """One replica of the server. It lives on the clock that it is given."""

    def __init__(
        self,
        settings: Settings,
        strategy: Strategy,
        engines: Sequence[VirtualEngine],
        rng: Random,
        clock: Callable[[], float],
        later: Later,
        scenario: Scenario,
        start: Start,
    ) -> None:
        """`clock`: virtual seconds; `later(at_s, deed)`: on it. Batches are as old as the scenario
        says when they come, by replay too."""
        self._clock = clock
        self._settings = settings
        self._later = later
        self._scenario = scenario
        self._start = start
        self._strategy = strategy
        self._metrics = Metrics()
        self._index = self._open(settings)
        self._predictions = Predictions(settings.prediction_max_blocks)
        self._ledger = Ledger(settings.reservation_limit_s, settings.max_reservations)
        self._manager = VirtualManager(
            self._index, settings, self._metrics, self._predictions.drop, self._ledger.forget
        )
        self._registry = Registry(self._metrics)
        self._registry.subscribe(self._manager.on_pod)
        self._registry.replace(_pod(number) for number in range(len(engines)))
        self._sources: list[VirtualSource] = []
        """One for each pod; none where events are off."""
        self._pod_of: dict[int, int] = {}
        self._candidates: tuple[Candidate, ...] = ()
        self._usage = VirtualUsage(settings, self._ledger)
        for engine in engines:
            self._follow(engine)
        self._see_candidates()
        self._wire(settings, rng)

    def _follow(self, engine: VirtualEngine) -> None:
        """The engine of the next pod, which the registry knows."""
        number = len(self._pod_of)
        (candidate,) = self._manager.candidates((_pod(number),))
        self._pod_of[candidate.source] = number
        self._usage.follow(candidate.source, engine)
        if not self._settings.kv_event_sync:
            return
        source = VirtualSource(
            candidate.source,
            self._index,
            self._settings,
            self._predictions.drop,
            partial(self._replay, engine, self._scenario.event_delay_s),
            self._later,
            self._scenario.replay_batches_per_s,
            has_replay=self._start.has_replay,
        )
        self._sources.append(source)
        self._manager.follow({candidate.source: source})
        source.open(self._start.saved.get(number), self._clock())

    def _see_candidates(self) -> None:
        self._candidates = self._manager.candidates(self._registry.candidates(_SERVED))

    def _wire(self, settings: Settings, rng: Random) -> None:
        parts = (self._metrics, self._registry, self._manager, self._index)
        state = (self._ledger, self._predictions, self._clock)
        self._agreement = Agreement(settings, *parts, *state, rng)
        ramp = Ramp(settings.ramp_s)
        self._registry.subscribe(lambda before, after: ramp.on_pod(before, after, self._clock()))
        self._viewer = Viewer(
            self._metrics,
            self._manager,
            self._index,
            self._ledger,
            self._predictions,
            settings.max_prompt_tokens,
            self._usage.caches,
            ramp,
        )
        self._booking = Booking(
            settings,
            self._metrics,
            self._manager,
            self._index,
            *state,
            self._agreement,
            lambda: False,
        )
        self._prefills = Prefills(
            self._index,
            self._manager,
            lambda trip, succeeded: self._ledger.prefill_done(trip.ticket, self._clock()),
            lambda told_by: None,
        )

    @property
    def looks_at_prompts(self) -> bool:
        """Whether the strategy does."""
        return self._strategy.needs_tokens

    def decide(
        self, ids: "array[int]", max_tokens: int, session: str | None = None
    ) -> tuple[int, Picked]:
        """The number of the pod, and the decision, which is booked. `session`: its name."""
        parsed = ParsedBody(
            model=MODEL,
            prompt=None,
            prompt_bytes=len(ids) * BYTES_PER_TOKEN,
            cache_salt=None,
            stream=True,
            max_tokens=max_tokens,
            report_mode=False,
        )
        plan = Plan(parsed, _SERVED, self._strategy, self._candidates, session)
        tokens = KnownTokens(ids if self._strategy.needs_tokens else None, None)
        view = self._viewer.view(plan, tokens, self._clock())
        decision = self._strategy.rank(view.context)
        picked = self._booking.commit(plan, tokens, view, decision, _REQUEST)
        if self._scenario.heads_at_once:
            self._head_came(_trip(picked))
        return self._pod_of[decision.chosen.candidate.source], picked

    def answer_began(self, picked: Picked) -> None:
        """The first token has come through, and the head with it if it did not come before."""
        if not self._scenario.heads_at_once:
            trip = _trip(picked)
            self._agreement.answered(trip, trip.pod.address, True)
            self._ledger.prefill_done(trip.ticket, self._clock())

    def _head_came(self, trip: Trip) -> None:
        ids, promised = trip.ids, trip.promised
        self._agreement.answered(trip, trip.pod.address, True)
        self._prefills.began(trip, ids, promised, True)

    def answer_ended(self, picked: Picked) -> None:
        """The answer is complete."""
        self._prefills.ended(_trip(picked))
        self._ledger.release(_trip(picked).ticket)

    def receive(self, pod: int, batch: Batch) -> None:
        """A batch of a pod's events has arrived."""
        if self._sources:
            self._sources[pod].live(batch, self._clock())
            if self._prefills.any_waiting:
                self._prefills.look()

    def pod_joins(self, engine: VirtualEngine) -> None:
        """A pod more, the next by number."""
        self._registry.upsert(_pod(len(self._pod_of)))
        self._follow(engine)
        self._see_candidates()

    def pod_goes(self, pod: int) -> None:
        """The engine process of a pod has ended: no candidate, and its connection is gone."""
        if self._sources:
            self._sources[pod].disconnect(self._clock())
        self._registry.upsert(_pod(pod, ready=False))
        self._see_candidates()

    def pod_returns(self, pod: int) -> None:
        """Another process runs in its place."""
        if self._sources:
            self._sources[pod].connect(self._clock())
        self._registry.upsert(_pod(pod))
        self._see_candidates()

    def saved(self) -> Mapping[int, Saved]:
        """What a snapshot of now holds, by pod."""
        found = {pod: source.saved() for pod, source in enumerate(self._sources)}
        return {pod: saved for pod, saved in found.items() if saved is not None}

    def tick(self) -> None:
        """Time has passed."""
        self._usage.tick(self._candidates, self._clock())
        for source in self._sources:
            source.tick(self._clock())

    def close(self) -> None:
        """Give back what the manager holds."""
        self._manager.close()

    def _replay(self, engine: VirtualEngine, delay_s: float, start: int) -> Sequence[Batch]:
        return engine.replay(start, self._clock() - delay_s)

    @staticmethod
    def _open(settings: Settings) -> PrefixIndex:
        return open_index(None, settings.kv_index_max_bytes, settings.kv_max_orphans)[1]


def _trip(picked: Picked) -> Trip:
    ticket = picked.ticket
    if not isinstance(ticket, Trip):
        raise TypeError(f"a ticket of another kind: {type(ticket).__name__}")
    return ticket


def _pod(number: int, ready: bool = True) -> Pod:
    """Names in the order of their numbers, since the registry sorts by name."""
    return Pod(
        namespace="simulated",
        name=f"pod-{number:04d}",
        uid=str(number),
        address=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:8000",
        model=MODEL,
        ready=ready,
        kv_events=True,
        ranks=(Rank(0, f"tcp://simulated:{number}", f"tcp://simulated:{number}"),),
    )
