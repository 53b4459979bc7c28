"""Whether a request may be sent on: the limit of how long it may wait for its beginning.

Pure. Owns what follows from a ranking and the delay of each candidate: the first that can begin in
time, or when to come again. How a delay is worked out it does not know (`pace`).
"""

import math
from collections.abc import Callable
from random import Random
from typing import Final

from aibrix_extproc.routing.types import Decision, Scored

REASON: Final = "overload"
"""Of a decision: the candidate that the strategy puts first could not begin in time."""

MAX_RETRY_AFTER_S: Final = 60

Delay = Callable[[Scored], float]
"""Seconds until a candidate could begin the request; 0 for one that has nothing else to do."""


def first_in_time(decision: Decision, delay_s: Delay, limit_s: float) -> Decision | float:
    """The decision whose first candidate can begin within the limit; or, where none can, the
    shortest delay of all. Those that can go before those that cannot, each in their old order."""
    if delay_s(decision.chosen) <= limit_s:
        return decision
    late: list[Scored] = []
    in_time: list[Scored] = []
    shortest_s = math.inf
    for scored in decision.ranking:
        delay = delay_s(scored)
        shortest_s = min(shortest_s, delay)
        (in_time if delay <= limit_s else late).append(scored)
    if not in_time:
        return shortest_s
    return Decision(decision.strategy, REASON, (*in_time, *late))


def retry_after_s(delay_s: float, limit_s: float, rng: Random) -> int:
    """Whole seconds, 1 to MAX_RETRY_AFTER_S, until the candidate with this delay has come down to
    the limit; drawn from there to twice as long and a second, so that those who were refused
    together do not come back together."""
    wait_s = min(max(0.0, delay_s - limit_s), float(MAX_RETRY_AFTER_S))
    return min(MAX_RETRY_AFTER_S, max(1, math.ceil(wait_s + rng.random() * (wait_s + 1))))
