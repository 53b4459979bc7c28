"""The strategies by name: the one list that the setting and the request header choose from.

A new one is a file of its own with a class that satisfies `routing.types.Strategy`, and a line
here.
"""

import random
from collections.abc import Callable, Mapping
from typing import Final

from aibrix_extproc.errors import UnknownStrategy
from aibrix_extproc.routing.strategies.least_kv_cache import LeastKvCache
from aibrix_extproc.routing.strategies.least_request import LeastRequest
from aibrix_extproc.routing.strategies.power_of_two import PowerOfTwo
from aibrix_extproc.routing.strategies.prefix_cache import PrefixCache
from aibrix_extproc.routing.strategies.prefix_cache_classic import PrefixCacheClassic
from aibrix_extproc.routing.strategies.random_choice import RandomChoice
from aibrix_extproc.routing.strategies.session_affinity import SessionAffinity
from aibrix_extproc.routing.types import Strategy
from aibrix_extproc.settings import Settings

StrategyFactory = Callable[[Settings, random.Random], Strategy]

STRATEGIES: Final[Mapping[str, StrategyFactory]] = {
    PrefixCache.name: PrefixCache,
    PrefixCacheClassic.name: PrefixCacheClassic,
    LeastRequest.name: LeastRequest,
    LeastKvCache.name: LeastKvCache,
    PowerOfTwo.name: PowerOfTwo,
    SessionAffinity.name: SessionAffinity,
    RandomChoice.name: RandomChoice,
}


def build(name: str, settings: Settings, rng: random.Random) -> Strategy:
    """The strategy of that name; `rng` decides its ties.

    Raises UnknownStrategy, which lists the known names.
    """
    factory = STRATEGIES.get(name)
    if factory is None:
        raise UnknownStrategy(name, tuple(STRATEGIES))
    return factory(settings, rng)
