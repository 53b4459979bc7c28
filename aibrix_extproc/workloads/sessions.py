"""Sessions of turns: the form that every workload has.

A turn's prompt and answer are pieces of named tokens, so that what is shared is shared exactly,
and a session's later prompts hold its earlier answers. Knows no source of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aibrix_extproc.workloads.pieces import Piece, total


@dataclass(frozen=True, slots=True)
class Turn:
    """One request. `think_s`: after the answer to the turn before it, until it is sent."""

    prompt: tuple[Piece, ...]
    answer: Piece
    think_s: float = 0.0
    recorded: Mapping[str, Any] | None = None
    """The body's own fields (`messages` or `prompt`), where a file gives them; `prompt` is then
    empty, and its length in tokens nobody knows."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt; 0 of a recorded one."""
        return total(self.prompt)


@dataclass(frozen=True, slots=True)
class Session:
    """Turns that follow each other. `start_s`: when the first is sent, whatever else happens."""

    start_s: float
    turns: tuple[Turn, ...]
    id: str = ""
    """Stable: the same workload and seed give the same ones. Letters, digits, `-`, `.`, `_`,
    except where a file gives them."""
    system_pieces: int = 0
    """The leading pieces of each prompt that are the system's words; those after are a user's."""
