"""Workloads that are made from a seed: shared prefixes, conversations, agents, nothing shared.

Pure: the same shape and seed give the same sessions anywhere. Times are those of a Poisson
process, so that a slow engine does not slow the traffic.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from aibrix_extproc.workloads.pieces import Piece
from aibrix_extproc.workloads.sessions import Session, Turn


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a workload that is made from a seed: tokens, seconds, counts.

    What a field means in each workload stands at its generator below.
    """

    sessions: int = 750
    rate: float = 8.0
    """Sessions that begin in a second, at times of a Poisson process."""
    groups: int = 150
    prefix_tokens: int = 6000
    turn_tokens: int = 1200
    output_tokens: int = 1000
    turns: int = 5
    think_s: float = 10.0
    """Mean of an exponential distribution."""
    even: bool = False
    """`shared_prefix`: every group has as many requests as the next (or one more), in an order
    from the seed. Else each request draws its group."""


PRESETS: Final[Mapping[str, Mapping[str, int | bool]]] = {
    "b2b-saas": {
        "groups": 150,
        "sessions": 750,
        "prefix_tokens": 6000,
        "turn_tokens": 1200,
        "output_tokens": 1000,
        "even": True,
    }
}
"""Of `shared_prefix`. `b2b-saas`: 150 customers, five prompts each."""


def shared_prefix(shape: Shape, seed: int) -> list[Session]:
    """One turn each: `prefix_tokens` of one of `groups`, then `turn_tokens` of its own."""
    rng = random.Random(f"shared-prefix {seed}")
    dealt = _dealt(shape, seed)
    return [
        _session("shared-prefix", seed, number, start_s, (turn,))
        for number, start_s in enumerate(_starts(shape, rng))
        for turn in (_turn(seed, number, 0, dealt(number) or _group(rng, shape), shape),)
    ]


def unique(shape: Shape, seed: int) -> list[Session]:
    """One turn each, of `prefix_tokens` and `turn_tokens` that no other request has."""
    rng = random.Random(f"unique {seed}")
    made = []
    for number, start_s in enumerate(_starts(shape, rng)):
        said = (Piece(f"unique {seed} {number}", shape.prefix_tokens),)
        turn = _turn(seed, number, 0, said, shape)
        made.append(_session("unique", seed, number, start_s, (turn,)))
    return made


def multi_turn(shape: Shape, seed: int) -> list[Session]:
    """`turns` turns: `prefix_tokens` of a group first, then the user's `turn_tokens` and the
    answers, each prompt holding all that was said before."""
    rng = random.Random(f"multi-turn {seed}")
    return [
        _session(
            "multi-turn",
            seed,
            number,
            start_s,
            _conversation(shape.turns, number, shape, seed, rng),
        )
        for number, start_s in enumerate(_starts(shape, rng))
    ]


def agent(shape: Shape, seed: int) -> list[Session]:
    """As `multi_turn`, but a session has 1 to 2 × `turns` − 1 turns: a tool's output takes the
    user's place, and `think_s` is the time of the tool."""
    rng = random.Random(f"agent {seed}")
    made = []
    for number, start_s in enumerate(_starts(shape, rng)):
        turns = rng.randint(1, 2 * shape.turns - 1)
        said = _conversation(turns, number, shape, seed, rng)
        made.append(_session("agent", seed, number, start_s, said))
    return made


WORKLOADS: Final[Mapping[str, Callable[[Shape, int], list[Session]]]] = {
    "shared-prefix": shared_prefix,
    "multi-turn": multi_turn,
    "agent": agent,
    "unique": unique,
}


def _session(
    workload: str, seed: int, number: int, start_s: float, turns: tuple[Turn, ...]
) -> Session:
    return Session(start_s, turns, f"{workload}-{seed}-{number}", system_pieces=1)


def _conversation(
    turns: int, number: int, shape: Shape, seed: int, rng: random.Random
) -> tuple[Turn, ...]:
    said = _group(rng, shape)
    made = []
    for place in range(turns):
        turn = _turn(seed, number, place, said, shape, rng.expovariate(1 / shape.think_s))
        made.append(turn)
        said = (*turn.prompt, turn.answer)
    return tuple(made)


def _turn(
    seed: int,
    number: int,
    place: int,
    said: tuple[Piece, ...],
    shape: Shape,
    think_s: float = 0.0,
) -> Turn:
    own = Piece(f"turn {seed} {number} {place}", shape.turn_tokens)
    answer = Piece(f"answer {seed} {number} {place}", shape.output_tokens)
    return Turn((*said, own), answer, think_s)


def _group(rng: random.Random, shape: Shape) -> tuple[Piece, ...]:
    return _prefix(rng.randrange(shape.groups), shape)


def _prefix(group: int, shape: Shape) -> tuple[Piece, ...]:
    return (Piece(f"group {group}", shape.prefix_tokens),)


def _dealt(shape: Shape, seed: int) -> Callable[[int], tuple[Piece, ...]]:
    """The prefix of each request where groups are even, from a draw of its own; else nothing."""
    if not shape.even:
        return lambda number: ()
    groups = [number % shape.groups for number in range(shape.sessions)]
    random.Random(f"shared-prefix groups {seed}").shuffle(groups)
    return lambda number: _prefix(groups[number], shape)


def _starts(shape: Shape, rng: random.Random) -> Iterator[float]:
    now = 0.0
    for _ in range(shape.sessions):
        now += rng.expovariate(shape.rate)
        yield now
