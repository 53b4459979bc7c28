"""What the comparators share: candidates in the order of a key, ties at random."""

from collections.abc import Callable
from random import Random
from typing import Any

from aibrix_extproc.routing.strategies.common import NO_LOAD, reason_or_only
from aibrix_extproc.routing.types import Decision, Load, RouteContext, Scored

Key = Callable[[int, Load], Any]
"""From the prompt tokens that a candidate holds, and its load: what it is sorted by."""


def ranked(context: RouteContext, key: Key, rng: Random) -> list[Scored]:
    """All candidates, the smallest key first; the score is the key where it is a number."""
    order = []
    for place, candidate in enumerate(context.candidates):
        held = context.reusable_tokens.get(candidate.source, 0)
        load = context.loads.get(candidate.source, NO_LOAD)
        order.append((key(held, load), rng.random(), place, candidate, held, load))
    order.sort(key=lambda entry: entry[:3])
    return [
        Scored(candidate, held, load, float(value) if isinstance(value, int | float) else 0.0)
        for value, _, _, candidate, held, load in order
    ]


def decision(name: str, context: RouteContext, ranking: list[Scored]) -> Decision:
    """The decision; its reason is `prefix` where the first one holds any of the prompt."""
    reason = "prefix" if ranking[0].reusable_tokens else "load"
    return Decision(name, reason_or_only(context, reason), tuple(ranking))
