"""What prompts and answers are made of: named runs of tokens.

Owns the names and lengths. What stands for a token, an id or a word, is the user's business.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of `tokens` tokens. Equal names begin with equal tokens, whatever their length."""

    name: str
    tokens: int


def total(pieces: Iterable[Piece]) -> int:
    """Tokens of all pieces."""
    return sum(piece.tokens for piece in pieces)
