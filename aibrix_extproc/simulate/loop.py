"""The virtual clock: what happens next, until all requests are answered.

Owns the order of events in time. Two things at one moment happen in a fixed order: what ends, what
happens to pods, what arrives at the router from clients, what it hears of engines, what begins. One
seed, one run.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Final

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.extproc.decides import Picked
from aibrix_extproc.fakes.scheduler import Request
from aibrix_extproc.figures import GAP_RESOLUTION_S
from aibrix_extproc.settings import Settings
from aibrix_extproc.simulate import scenes
from aibrix_extproc.simulate.bounds import central
from aibrix_extproc.simulate.bounds.central import CentralQueue, SharedCache
from aibrix_extproc.simulate.bounds.oracle import Truth
from aibrix_extproc.simulate.engine import VLLM_BUFFER, Batch, VirtualEngine, paged, request_of
from aibrix_extproc.simulate.front import Front
from aibrix_extproc.simulate.gateway import Gateway
from aibrix_extproc.simulate.records import NO_GATEWAY, NO_POD, PodTotals, Record, Run
from aibrix_extproc.simulate.scenario import Scenario
from aibrix_extproc.simulate.scenes import GatewayRestarts, Pause, PodJoins, PodRestarts, Scene
from aibrix_extproc.simulate.timing import StepTime
from aibrix_extproc.simulate.tokens import block_hashes, token_ids
from aibrix_extproc.workloads.sessions import Session

__all__ = ["Scenario", "Simulation"]

_TICK_S: Final = 1.0
"""The server looks at its sources' clocks more often; silence is measured in tens of seconds."""


class Kind(IntEnum):
    """What happens; of things at one moment the lower number first."""

    STEP_ENDS = 0
    SCENE = 1
    ARRIVAL = 2
    EVENTS = 3
    TICK = 4
    STEP_BEGINS = 5


@dataclass(slots=True)
class _Flight:
    """One request under way."""

    record: Record
    session: Session
    turn: int
    gateway: Gateway | None = None
    """Whose decision it was; None where nobody decided. It may have been replaced since."""
    picked: Picked | None = None
    last_token_s: float = 0.0


class Simulation:
    """One run. `run` it once."""

    def __init__(self, scenario: Scenario, settings: Settings) -> None:
        """Raises UnknownStrategy, and SettingsError for a scene that cannot be."""
        scenes.check(scenario.scenes, len(scenario.times), scenario.gateways)
        self._scenario = scenario
        self._central = CentralQueue() if scenario.strategy == central.NAME else None
        self._make_blocks = SharedCache().of_an_engine if self._central is not None else paged
        self._engines = [self._engine(time) for time in scenario.times]
        self._truth = Truth(self._engines)
        self.now = 0.0
        self._agenda: list[tuple[float, int, int, object]] = []
        self._numbers = itertools.count()
        self._front = None if self._central is not None else self._open(settings)
        self._pauses = sorted(
            (scene for scene in scenario.scenes if isinstance(scene, Pause)),
            key=lambda pause: pause.at_s,
        )
        self._flights: dict[Request, _Flight] = {}
        looks = self._front is not None and self._front.looks_at_prompts
        self._run = Run(scenario.strategy, looks)
        self._left = 0
        """Turns not yet answered."""
        self._began = [False] * len(self._engines)
        """Whether the beginning of a step is on the agenda."""
        self._due = [math.nan] * len(self._engines)
        """When the step under way ends; NaN where there is none."""
        self._up = [True] * len(self._engines)
        """Whether its process runs."""
        self._seen: set[int] | None = set() if scenario.bound else None
        self._bound_tokens = 0

    def _engine(self, time: StepTime) -> VirtualEngine:
        shape, wanted = self._scenario.shape, self._scenario.scenes
        if any(isinstance(scene, GatewayRestarts) for scene in wanted):
            return VirtualEngine(shape, time, self._make_blocks, VLLM_BUFFER)
        return VirtualEngine(shape, time, self._make_blocks)

    def _open(self, settings: Settings) -> Front:
        def later(at_s: float, deed: Callable[[], None]) -> None:
            self._put(at_s, Kind.SCENE, deed)

        return Front(self._scenario, settings, self._truth, lambda: self.now, later)

    def run(
        self, sessions: Iterable[Session], on_answer: Callable[[float], None] = lambda now: None
    ) -> Run:
        """Until every turn is answered. `on_answer(now)` after each.

        Raises SettingsError for a request that no cache can hold.
        """
        for session in sessions:
            self._left += len(session.turns)
            start_s = scenes.session_start(self._pauses, session.start_s)
            self._put(start_s, Kind.ARRIVAL, (session, 0))
        for scene in self._scenario.scenes:
            if not isinstance(scene, Pause):
                self._put(scene.at_s, Kind.SCENE, scene)
        self._put(_TICK_S, Kind.TICK, None)
        deeds: dict[int, Callable[..., None]] = {
            Kind.STEP_ENDS: self._step_ends,
            Kind.SCENE: self._happens,
            Kind.ARRIVAL: self._arrives,
            Kind.EVENTS: self._hears,
            Kind.TICK: self._tick,
            Kind.STEP_BEGINS: self._step_begins,
        }
        self._on_answer = on_answer
        while self._left:
            at, kind, _, what = heapq.heappop(self._agenda)
            self._run.open_area_s += len(self._flights) * (at - self.now)
            self.now = at
            deeds[kind](what)
        if self._front is not None:
            self._front.close()
        return self._finished()

    def _put(self, at: float, kind: Kind, what: object) -> None:
        heapq.heappush(self._agenda, (at, int(kind), next(self._numbers), what))

    # -- what happens -------------------------------------------------------------------------

    def _arrives(self, what: tuple[Session, int]) -> None:
        self._send(*what)

    def _send(self, session: Session, place: int, record: Record | None = None) -> None:
        """Decide on a turn, and queue it. `record`: of one that was sent before, and lost."""
        turn = session.turns[place]
        ids = token_ids(turn.prompt)
        answer = token_ids((turn.answer,))
        hashes = block_hashes(ids + answer, self._scenario.shape.block_size)
        if record is None:
            record = Record(NO_POD, self.now, len(ids), len(answer))
            self._run.records.append(record)
            self._count_bound(hashes, len(ids))
        else:
            record.resent += 1
        request = request_of(ids, answer, hashes)
        flight = self._flights[request] = _Flight(record, session, place)
        if self._front is None:
            record.gateway = NO_GATEWAY
            self._enqueue(request)
            return
        met = self._front.choose(session.id or None)
        if met is None:
            record.pod, record.gateway, record.matched_tokens = self._front.around(), NO_GATEWAY, 0
        else:
            record.gateway, flight.gateway = met
            self._truth.now, self._truth.request = self.now, request
            record.pod, picked = met[1].decide(ids, len(answer), session.id or None)
            flight.picked, record.matched_tokens = picked, picked.matched_tokens
        self._engines[record.pod].add(request)
        self._wake(record.pod)

    def _wake(self, pod: int) -> None:
        """It may have something to do, or something else than it had."""
        if self._engines[pod].stepping:
            self._end_due(pod, self._engines[pod].cut(self.now))
        else:
            self._begin_soon(pod)

    def _begin_soon(self, pod: int) -> None:
        """Once at a moment, after all that arrives at it."""
        if not self._began[pod]:
            self._began[pod] = True
            self._put(self.now, Kind.STEP_BEGINS, pod)

    def _step_begins(self, pod: int) -> None:
        self._began[pod] = False
        engine = self._engines[pod]
        if self._central is not None:
            self._take(pod)
            if engine.idle:
                return
        self._end_due(pod, engine.begin(self.now))

    def _end_due(self, pod: int, at: float) -> None:
        """What was on the agenda before for this pod, if it is another time, counts no more."""
        if self._due[pod] != at:
            self._due[pod] = at
            self._put(at, Kind.STEP_ENDS, pod)

    def _step_ends(self, pod: int) -> None:
        if self._due[pod] != self.now:
            return
        self._due[pod] = math.nan
        engine = self._engines[pod]
        ended = engine.end(self.now)
        for output in ended.generated:
            self._token(output.request)
        if ended.quiet_s:
            self._quiet(engine, ended.quiet_s)
        if ended.batch is not None:
            self._put(self.now + self._scenario.event_delay_s, Kind.EVENTS, (pod, ended.batch))
        if not engine.idle or self._central:
            self._begin_soon(pod)

    def _quiet(self, engine: VirtualEngine, ends_s: Sequence[float]) -> None:
        """Each request of the batch has one token more at each of these times."""
        flights = [self._flights[request] for request in engine.scheduler.batch]
        last_s, gaps, times = flights[0].last_token_s, self._run.gaps, len(flights)
        for end_s in ends_s:
            gaps[round((end_s - last_s) / GAP_RESOLUTION_S)] += times
            last_s = end_s
        for flight in flights:
            flight.last_token_s = last_s

    def _token(self, request: Request) -> None:
        flight = self._flights[request]
        record = flight.record
        if request.generated == 1:
            record.first_token_s = self.now
            record.cached_tokens = request.cached_tokens or 0
            if flight.gateway is not None and flight.picked is not None:
                flight.gateway.answer_began(flight.picked)
        else:
            self._run.gaps[round((self.now - flight.last_token_s) / GAP_RESOLUTION_S)] += 1
        flight.last_token_s = self.now
        if request.finish is not None:
            self._ended(request, flight)

    def _ended(self, request: Request, flight: _Flight) -> None:
        flight.record.ended_s = self._run.duration_s = self.now
        if flight.gateway is not None and flight.picked is not None:
            flight.gateway.answer_ended(flight.picked)
        del self._flights[request]
        self._left -= 1
        following = flight.turn + 1
        if following < len(flight.session.turns):
            think_s = flight.session.turns[following].think_s
            at_s = scenes.turn_start(self._pauses, self.now + think_s)
            self._put(at_s, Kind.ARRIVAL, (flight.session, following))
        self._on_answer(self.now)

    def _hears(self, what: tuple[int, Batch]) -> None:
        if self._front is not None:
            self._front.receive(*what)

    def _tick(self, what: None) -> None:
        if self._front is not None:
            self._front.tick()
        self._put(self.now + _TICK_S, Kind.TICK, None)

    # -- one queue for all ----------------------------------------------------------------------

    def _enqueue(self, request: Request) -> None:
        if self._central is not None:
            self._central.put(request)
            for pod, is_up in enumerate(self._up):
                if is_up:
                    self._wake(pod)

    def _take(self, pod: int) -> None:
        """What the pod has room for, as its next step begins."""
        if self._central is not None:
            for request in self._central.take(self._engines[pod], sum(self._up)):
                self._flights[request].record.pod = pod
                self._engines[pod].add(request)

    # -- scenes -------------------------------------------------------------------------------

    def _happens(self, scene: Scene | Callable[[], None]) -> None:
        match scene:
            case PodJoins():
                self._joins()
            case PodRestarts(_, pod, down_s):
                self._goes(pod)
                self._put(self.now + down_s, Kind.SCENE, partial(self._returns, pod))
            case GatewayRestarts():
                if self._front is not None:
                    self._front.restart(scene)
            case Pause():
                pass  # its traffic comes later
            case _:
                scene()

    def _joins(self) -> None:
        self._engines.append(self._engine(self._scenario.times[0]))
        self._began.append(False)
        self._due.append(math.nan)
        self._up.append(True)
        if self._front is not None:
            self._front.pod_joins(self._engines[-1])
        if self._central:
            self._wake(len(self._engines) - 1)

    def _goes(self, pod: int) -> None:
        """Its engine process ends, and what it did not answer is sent again, first come first."""
        lost = self._engines[pod].restart(self.now)
        self._due[pod], self._began[pod], self._up[pod] = math.nan, False, False
        if not any(self._up):
            raise SettingsError(f"no pod is left at {self.now:g} s, when pod {pod} restarts")
        self._agenda = [entry for entry in self._agenda if not _is_of(pod, entry)]
        heapq.heapify(self._agenda)
        if self._front is not None:
            self._front.pod_goes(pod)
        flights = [self._flights.pop(request) for request in lost]
        for flight in flights:
            if flight.gateway is not None and flight.picked is not None:
                flight.gateway.answer_ended(flight.picked)
        for flight in flights:
            self._send(flight.session, flight.turn, flight.record)

    def _returns(self, pod: int) -> None:
        self._up[pod] = True
        if self._front is not None:
            self._front.pod_returns(pod)
        if self._central:
            self._wake(pod)

    # -- the end ------------------------------------------------------------------------------

    def _count_bound(self, hashes: Sequence[int], prompt_tokens: int) -> None:
        if self._seen is None:
            return
        size = self._scenario.shape.block_size
        held = 0
        for block in hashes[: (prompt_tokens - 1) // size]:
            if block not in self._seen:
                break
            held += 1
        self._bound_tokens += held * size
        self._seen.update(hashes)

    def _finished(self) -> Run:
        run = self._run
        sent = [0] * len(self._engines)
        for record in run.records:
            sent[record.pod] += 1
        run.pods = [
            PodTotals(
                requests=requests,
                busy_share=engine.busy_s / run.duration_s if run.duration_s else 0.0,
                prefill_tokens=engine.prefill_tokens,
                preemptions=engine.scheduler.counts.preemptions,
            )
            for engine, requests in zip(self._engines, sent, strict=True)
        ]
        if self._seen is not None:
            run.bound_tokens = self._bound_tokens
        return run


def _is_of(pod: int, entry: tuple[float, int, int, object]) -> bool:
    """Whether this is a step of the pod, or a batch of its events that is under way."""
    _, kind, _, what = entry
    if kind == Kind.EVENTS and isinstance(what, tuple):
        return bool(what[0] == pod)
    return kind in (Kind.STEP_BEGINS, Kind.STEP_ENDS) and what == pod
