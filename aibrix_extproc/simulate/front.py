"""The gateways of a run, and which of them a request meets.

Owns their number, the choice in front of them, and what happens when one restarts. Each has a
ledger, predictions and an index of its own, and hears all events.
"""

from collections.abc import Callable
from enum import StrEnum
from random import Random

from xxhash import xxh3_64_intdigest

from aibrix_extproc.settings import Settings
from aibrix_extproc.simulate import names
from aibrix_extproc.simulate.bounds.oracle import Truth
from aibrix_extproc.simulate.engine import Batch, VirtualEngine
from aibrix_extproc.simulate.gateway import Gateway, Start
from aibrix_extproc.simulate.scenario import Scenario
from aibrix_extproc.simulate.scenes import Begins, GatewayRestarts
from aibrix_extproc.simulate.sources import Later


class By(StrEnum):
    """What a choice in front of several gateways goes by."""

    RANDOM = "random"
    SESSION = "session-hash"


class Front:
    """The gateways. What happens to pods is told to each, at once."""

    def __init__(
        self,
        scenario: Scenario,
        settings: Settings,
        truth: Truth,
        clock: Callable[[], float],
        later: Later,
    ) -> None:
        """`later(at_s, deed)`: on the same clock. Raises UnknownStrategy."""
        self._scenario = scenario
        self._settings = settings
        self._truth = truth
        self._clock = clock
        self._later = later
        self._rng = Random(f"front {scenario.seed}")
        self._down: set[int] = set()
        self._starts = 0
        self._gateways = [self._open(Start()) for _ in range(scenario.gateways)]

    @property
    def looks_at_prompts(self) -> bool:
        """Whether the strategy does."""
        return self._gateways[0].looks_at_prompts

    def choose(self, session: str | None) -> tuple[int, Gateway] | None:
        """The gateway of the next request, and its number; None: it goes around them all."""
        if self._scenario.around and self._rng.random() < self._scenario.around:
            return None
        number, at = len(self._gateways), 0
        if number > 1:
            if self._scenario.front == By.SESSION and session is not None:
                at = xxh3_64_intdigest(session.encode()) % number
            else:
                at = self._rng.randrange(number)
        return at, self._gateways[at]

    def around(self) -> int:
        """A pod for a request that goes around the gateways: by lot, of those that run."""
        there = [n for n in range(len(self._truth.engines)) if n not in self._down]
        return self._rng.choice(there)

    def receive(self, pod: int, batch: Batch) -> None:
        """A batch of a pod's events has arrived."""
        for gateway in self._gateways:
            gateway.receive(pod, batch)

    def tick(self) -> None:
        """Time has passed."""
        for gateway in self._gateways:
            gateway.tick()

    def pod_joins(self, engine: VirtualEngine) -> None:
        """A pod more, the next by number."""
        for gateway in self._gateways:
            gateway.pod_joins(engine)

    def pod_goes(self, pod: int) -> None:
        """The engine process of a pod has ended."""
        self._down.add(pod)
        for gateway in self._gateways:
            gateway.pod_goes(pod)

    def pod_returns(self, pod: int) -> None:
        """Another process runs in its place."""
        self._down.discard(pod)
        for gateway in self._gateways:
            gateway.pod_returns(pod)

    def restart(self, scene: GatewayRestarts) -> None:
        """Another process takes the place of a gateway, at once. It has no ledger and no
        predictions; what it knows of caches depends on how it begins."""
        before = self._gateways[scene.gateway]
        saved = before.saved() if scene.begins is Begins.SNAPSHOT else {}
        before.close()
        start = Start(has_replay=scene.begins is not Begins.NOTHING, saved=saved)
        after = self._gateways[scene.gateway] = self._open(start)
        for pod in self._down:
            after.pod_goes(pod)

    def close(self) -> None:
        """Give back what they hold."""
        for gateway in self._gateways:
            gateway.close()

    def _open(self, start: Start) -> Gateway:
        """The next gateway to start. The first of a run draws as the only one always did."""
        scenario = self._scenario
        seed: int | str = f"{scenario.seed} {self._starts}" if self._starts else scenario.seed
        self._starts += 1
        return Gateway(
            self._settings,
            names.build(scenario.strategy, self._settings, Random(seed), self._truth),
            self._truth.engines,
            Random(seed),
            self._clock,
            self._later,
            scenario,
            start,
        )
