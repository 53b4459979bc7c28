"""Everything of a run but its traffic and the router's settings: plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from aibrix_extproc.simulate.engine import EngineShape
from aibrix_extproc.simulate.scenes import Scene
from aibrix_extproc.simulate.timing import StepTime


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything of a run but its traffic."""

    strategy: str
    """A name of `names.NAMES`."""
    times: Sequence[StepTime]
    """One for each pod, so that they may differ. A pod that joins is as fast as the first."""
    shape: EngineShape = field(default_factory=EngineShape)
    event_delay_s: float = 0.0
    """Between the end of a step and the arrival of its events at the router."""
    seed: int = 1
    bound: bool = False
    """Work out what one infinite cache would reuse, which takes memory."""
    scenes: Sequence[Scene] = ()
    """What happens meanwhile."""
    gateways: int = 1
    """Replicas of the server, each with a ledger, predictions and an index of its own."""
    front: str = "random"
    """Which of them a request meets: `random`, or `session-hash`, where it has a session."""
    around: float = 0.0
    """Share of requests that go to a pod by lot, past all gateways: only events tell of them."""
    replay_batches_per_s: float = 0.0
    """How fast each source's replay is read; 0: at once."""
    heads_at_once: bool = False
    """The head of an answer comes as its request is sent, as vLLM's do; else with its first
    token."""
