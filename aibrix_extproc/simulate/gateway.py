"""The router on a virtual clock: the parts of one decision, in the order of `decide.Decider`.

Owns the glue: tokens are given instead of asked for, and candidates are the virtual pods. View,
strategy, booking, ledger, predictions, index and event sync are the server's own.
"""

from array import array
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Final

from aibrix_extproc.agreement.trips import Trip
from aibrix_extproc.agreement.watch import Agreement
from aibrix_extproc.decide.booking import Booking
from aibrix_extproc.decide.plan import Plan
from aibrix_extproc.decide.view import BYTES_PER_TOKEN, KnownTokens, Viewer
from aibrix_extproc.discovery.pods import Pod, Rank, ServedModel
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.errors import UnknownStrategy
from aibrix_extproc.extproc.decides import Picked, RouteRequest
from aibrix_extproc.extproc.openai import ParsedBody
from aibrix_extproc.index import PrefixIndex, open_index
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.routing.strategies import STRATEGIES, build
from aibrix_extproc.routing.types import Strategy
from aibrix_extproc.settings import Settings
from aibrix_extproc.simulate.engine import Batch, VirtualEngine
from aibrix_extproc.simulate.round_robin import RoundRobin
from aibrix_extproc.simulate.sources import VirtualManager, VirtualSource

MODEL: Final = "simulated"
STRATEGY_NAMES: Final = (*STRATEGIES, RoundRobin.name)
_REQUEST: Final = RouteRequest("POST", "/v1/completions", {}, b"", "")


class Gateway:
    """One replica of the server. It lives on the clock that it is given."""

    def __init__(
        self,
        settings: Settings,
        strategy: str,
        engines: Sequence[VirtualEngine],
        seed: int,
        clock: Callable[[], float],
        event_delay_s: float = 0.0,
    ) -> None:
        """`clock`: virtual seconds. Batches are as old when they come, by replay too.

        Raises UnknownStrategy.
        """
        self._clock = clock
        self._strategy = _strategy(strategy, settings, seed)
        self._metrics = Metrics()
        self._index = self._open(settings)
        self._predictions = Predictions(settings.prediction_max_blocks)
        self._ledger = Ledger(settings.reservation_limit_s, settings.max_reservations)
        manager = VirtualManager(
            self._index, settings, self._metrics, self._predictions.drop, self._ledger.forget
        )
        self._registry = Registry(self._metrics)
        self._registry.subscribe(manager.on_pod)
        self._registry.replace(_pods(len(engines)))
        self._candidates = manager.candidates(self._registry.pods())
        self._sources = [
            VirtualSource(
                candidate.source,
                self._index,
                settings,
                self._predictions.drop,
                partial(self._replay, engine, event_delay_s),
            )
            for candidate, engine in zip(self._candidates, engines, strict=True)
        ]
        self._pod_of = {candidate.source: i for i, candidate in enumerate(self._candidates)}
        if settings.kv_event_sync:
            manager.follow(dict(zip(self._pod_of, self._sources, strict=True)))
        for source in self._sources:
            source.connect(0.0)
        self._manager = manager
        self._wire(settings, seed)

    def _wire(self, settings: Settings, seed: int) -> None:
        parts = (self._metrics, self._registry, self._manager, self._index)
        state = (self._ledger, self._predictions, self._clock)
        self._agreement = Agreement(settings, *parts, *state, Random(seed))
        self._viewer = Viewer(
            self._metrics,
            self._manager,
            self._index,
            self._ledger,
            self._predictions,
            settings.max_prompt_tokens,
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
        served = ServedModel(MODEL, MODEL)
        plan = Plan(parsed, served, self._strategy, self._candidates, session)
        tokens = KnownTokens(ids if self._strategy.needs_tokens else None, None)
        view = self._viewer.view(plan, tokens, self._clock())
        decision = self._strategy.rank(view.context)
        picked = self._booking.commit(plan, tokens, view, decision, _REQUEST)
        return self._pod_of[decision.chosen.candidate.source], picked

    def answer_began(self, picked: Picked) -> None:
        """The first token has come through: the prompt is no longer owed."""
        trip = _trip(picked)
        self._agreement.answered(trip, trip.pod.address, True)
        self._ledger.prefill_done(trip.ticket, self._clock())

    def answer_ended(self, picked: Picked) -> None:
        """The answer is complete."""
        self._ledger.release(_trip(picked).ticket)

    def receive(self, pod: int, batch: Batch) -> None:
        """A batch of a pod's events has arrived."""
        self._sources[pod].live(batch, self._clock())

    def tick(self) -> None:
        """Time has passed."""
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


def _strategy(name: str, settings: Settings, seed: int) -> Strategy:
    if name == RoundRobin.name:
        return RoundRobin()
    if name not in STRATEGIES:
        raise UnknownStrategy(name, STRATEGY_NAMES)
    return build(name, settings, Random(seed))


def _pods(number: int) -> list[Pod]:
    """Names in the order of their numbers, since the registry sorts by name."""
    return [
        Pod(
            namespace="simulated",
            name=f"pod-{i:04d}",
            uid=str(i),
            address=f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}:8000",
            model=MODEL,
            kv_events=True,
            ranks=(Rank(0, f"tcp://simulated:{i}", f"tcp://simulated:{i}"),),
        )
        for i in range(number)
    ]
