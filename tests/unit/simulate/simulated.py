"""What the simulator's tests share: small scenarios, and runs of them."""

from collections.abc import Iterable, Sequence
from typing import Any

from aibrix_extproc.fakes.config import TimeModel
from aibrix_extproc.simulate.engine import EngineShape
from aibrix_extproc.simulate.loop import Scenario, Simulation
from aibrix_extproc.simulate.options import router_settings
from aibrix_extproc.simulate.records import Run
from aibrix_extproc.simulate.timing import Linear, Polynomial
from aibrix_extproc.workloads.pieces import Piece
from aibrix_extproc.workloads.sessions import Session, Turn

SMALL = EngineShape(blocks=200, block_size=16, max_num_seqs=16, max_num_batched_tokens=512)


def scenario(strategy: str = "round-robin", pods: int = 2, **more: Any) -> Scenario:
    fields: dict[str, Any] = {"shape": SMALL, **more}
    return Scenario(strategy, (Polynomial(),) * pods, **fields)


def run(given: Scenario, sessions: Iterable[Session], *, events: bool = True) -> Run:
    return Simulation(given, router_settings({}, events=events)).run(list(sessions))


def one(start_s: float, name: str, tokens: int, answer: int = 1, shared: int = 0) -> Session:
    """A request of `shared` tokens that all have, and `tokens` of its own."""
    own = Piece(f"own {name}", tokens)
    prompt = (Piece("shared", shared), own) if shared else (own,)
    return Session(start_s, (Turn(prompt, Piece(f"answer {name}", answer)),))


def linear(**fields: float) -> Linear:
    return Linear(TimeModel(**fields))


def cached(found: Run) -> Sequence[int]:
    return [record.cached_tokens for record in found.records]
