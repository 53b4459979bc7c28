"""What is asked, and when: sessions of turns, from a trace or from a seed.

Pure. A turn's prompt and answer are pieces of named tokens, so that what is shared is shared
exactly, and a session's later prompts hold its earlier answers. Knows no engine.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.simulate.tokens import Piece, total

MOONCAKE_BLOCK_TOKENS: Final = 512


@dataclass(frozen=True, slots=True)
class Turn:
    """One request. `think_s`: after the answer to the turn before it, until it is sent."""

    prompt: tuple[Piece, ...]
    answer: Piece
    think_s: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        return total(self.prompt)


@dataclass(frozen=True, slots=True)
class Session:
    """Turns that follow each other. `start_s`: when the first is sent, whatever else happens."""

    start_s: float
    turns: tuple[Turn, ...]


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


def mooncake(path: Path, speed: float = 1.0, limit: int | None = None) -> list[Session]:
    """A trace of Mooncake (FAST '25): one session of one turn for each line.

    `speed` 3 sends what the trace sends in 3 s within one. The prompt is its ids, 512 tokens each,
    cut at `input_length`. Raises SettingsError for a file that is no such trace.
    """
    sessions = []
    try:
        with path.open() as lines:
            for number, line in enumerate(lines):
                if limit is not None and number >= limit:
                    break
                if line.strip():
                    sessions.append(_mooncake_session(json.loads(line), number, speed))
    except OSError as error:
        raise SettingsError(f"the trace {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"the trace {path}, line {number + 1}: {error!r}; expected timestamp (ms), "
            "input_length, output_length and hash_ids in each line"
        ) from None
    if not sessions:
        raise SettingsError(f"the trace {path} holds no request")
    return sessions


def _mooncake_session(row: dict[str, object], number: int, speed: float) -> Session:
    ids = row["hash_ids"]
    if not isinstance(ids, list) or not ids:
        raise ValueError("hash_ids is no list of ids")
    length = min(_count(row["input_length"]), len(ids) * MOONCAKE_BLOCK_TOKENS)
    pieces, left = [], length
    for hash_id in ids:
        if left <= 0:
            break
        pieces.append(Piece(f"mooncake {hash_id}", min(left, MOONCAKE_BLOCK_TOKENS)))
        left -= MOONCAKE_BLOCK_TOKENS
    answer = Piece(f"answer {number}", _count(row["output_length"]))
    start_s = float(str(row["timestamp"])) / 1e3 / speed
    return Session(start_s, (Turn(tuple(pieces), answer),))


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"a length of {value!r} tokens")
    return value


def shared_prefix(shape: Shape, seed: int) -> list[Session]:
    """One turn each: `prefix_tokens` of one of `groups`, then `turn_tokens` of its own."""
    rng = random.Random(f"shared-prefix {seed}")
    return [
        Session(start_s, (_turn(f"{seed}", number, 0, _group(rng, shape), shape),))
        for number, start_s in enumerate(_starts(shape, rng))
    ]


def unique(shape: Shape, seed: int) -> list[Session]:
    """One turn each, of `prefix_tokens` and `turn_tokens` that no other request has."""
    rng = random.Random(f"unique {seed}")
    return [
        Session(
            start_s,
            (
                _turn(
                    f"{seed}",
                    number,
                    0,
                    (Piece(f"unique {seed} {number}", shape.prefix_tokens),),
                    shape,
                ),
            ),
        )
        for number, start_s in enumerate(_starts(shape, rng))
    ]


def multi_turn(shape: Shape, seed: int) -> list[Session]:
    """`turns` turns: `prefix_tokens` of a group first, then the user's `turn_tokens` and the
    answers, each prompt holding all that was said before."""
    rng = random.Random(f"multi-turn {seed}")
    return [
        _conversation(start_s, shape.turns, number, shape, seed, rng)
        for number, start_s in enumerate(_starts(shape, rng))
    ]


def agent(shape: Shape, seed: int) -> list[Session]:
    """As `multi_turn`, but a session has 1 to 2 × `turns` − 1 turns: a tool's output takes the
    user's place, and `think_s` is the time of the tool."""
    rng = random.Random(f"agent {seed}")
    return [
        _conversation(start_s, rng.randint(1, 2 * shape.turns - 1), number, shape, seed, rng)
        for number, start_s in enumerate(_starts(shape, rng))
    ]


WORKLOADS: Final = {
    "shared-prefix": shared_prefix,
    "multi-turn": multi_turn,
    "agent": agent,
    "unique": unique,
}


def _conversation(
    start_s: float, turns: int, number: int, shape: Shape, seed: int, rng: random.Random
) -> Session:
    said = _group(rng, shape)
    made = []
    for place in range(turns):
        turn = _turn(f"{seed}", number, place, said, shape, rng.expovariate(1 / shape.think_s))
        made.append(turn)
        said = (*turn.prompt, turn.answer)
    return Session(start_s, tuple(made))


def _turn(
    seed: str,
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
    return (Piece(f"group {rng.randrange(shape.groups)}", shape.prefix_tokens),)


def _starts(shape: Shape, rng: random.Random) -> Iterator[float]:
    now = 0.0
    for _ in range(shape.sessions):
        now += rng.expovariate(shape.rate)
        yield now
