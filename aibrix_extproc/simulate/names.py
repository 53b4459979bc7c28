"""Every strategy that a simulation can run, by its name: the one list of `--strategy`.

The server's own, what others calibrate with, the rules of other systems, and bounds. Only the first
can be chosen in the server.
"""

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from aibrix_extproc.errors import UnknownStrategy
from aibrix_extproc.routing.strategies import STRATEGIES, StrategyFactory
from aibrix_extproc.routing.types import Strategy
from aibrix_extproc.settings import Settings
from aibrix_extproc.simulate.bounds import central, oracle
from aibrix_extproc.simulate.bounds.oracle import Oracle, Truth
from aibrix_extproc.simulate.comparators import COMPARATORS
from aibrix_extproc.simulate.round_robin import RoundRobin

_BASELINES: Final[Mapping[str, Callable[[], Strategy]]] = {RoundRobin.name: RoundRobin}
_RULES: Final[Mapping[str, StrategyFactory]] = {**STRATEGIES, **COMPARATORS}
NAMES: Final = (*STRATEGIES, *_BASELINES, *COMPARATORS, oracle.NAME, central.NAME)


def build(name: str, settings: Settings, rng: Random, truth: Truth | None = None) -> Strategy:
    """The strategy of that name; `rng` decides its ties, and `truth` is for the oracle.

    Raises UnknownStrategy. `central` is none: it decides when a pod has room, not before.
    """
    if name == oracle.NAME:
        return Oracle(truth or Truth(()), rng)
    if name in _BASELINES:
        return _BASELINES[name]()
    if name not in _RULES:
        raise UnknownStrategy(name, NAMES)
    return _RULES[name](settings, rng)
