"""The rules of other systems, to compare with: each a strategy that only a simulation can run.

A new one is a class that satisfies `routing.types.Strategy`, and a line here. AIBrix's own rule is
not among them: the server has it, as `prefix-cache-classic`.
"""

from collections.abc import Mapping
from typing import Final

from aibrix_extproc.routing.strategies import StrategyFactory
from aibrix_extproc.simulate.comparators.overlap_cost import (
    OverlapCost,
    OverlapCostSoft,
    OverlapCostTwice,
)
from aibrix_extproc.simulate.comparators.single_minded import LoadOnly, PrefixOnly
from aibrix_extproc.simulate.comparators.sticky import Sticky

COMPARATORS: Final[Mapping[str, StrategyFactory]] = {
    PrefixOnly.name: PrefixOnly,
    LoadOnly.name: LoadOnly,
    OverlapCost.name: OverlapCost,
    OverlapCostTwice.name: OverlapCostTwice,
    OverlapCostSoft.name: OverlapCostSoft,
    Sticky.name: Sticky,
}
