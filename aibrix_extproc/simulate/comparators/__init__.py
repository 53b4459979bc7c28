"""The rules of other systems, to compare with: each a strategy in a file of its own.

A new one is a class that satisfies `routing.types.Strategy`, and a line here.
"""

from collections.abc import Mapping
from typing import Final

from aibrix_extproc.routing.strategies import StrategyFactory

COMPARATORS: Final[Mapping[str, StrategyFactory]] = {}
