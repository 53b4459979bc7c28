"""The words of prompts, made from the names of pieces.

Owns the way from a piece to text that is the same in every run: equal names begin with equal
words, so what is shared is shared exactly. Every word is a short common English one after a space,
which is one token of the fake engine, and of nearly every real tokenizer. Knows no chat.
"""

import hashlib
from functools import lru_cache
from typing import Final

from aibrix_extproc.workloads.pieces import Piece

_CACHED_PIECES: Final = 1024
"""Of 6,000 words each, 33 MB."""

_VOCABULARY: Final = """
able about above across act add after again age ago air all allow alone along also always among
and animal answer any appear area arm around art ask away baby back bad ball bank base bear beat
become bed before begin behind best better big bird black blood blue board boat body bone book
born both bottom box boy break bring brown build burn busy but buy call came camp can car card
care carry case catch cause cell center chair chance change check child choose city claim class
clean clear close cloud coast cold color come common cook cool copy corn corner cost could count
course cover create cross cry cut dance dark day dead deal dear death decide deep degree design
did differ direct doctor dog door double down draw dream dress drink drive drop dry during each
ear early earth ease east eat edge effect egg eight else end energy engine enough enter equal
even event ever every exact except eye face fact fair fall family famous far farm fast fat
father favor fear feed feel feet fell few field fight figure fill final find fine finger finish
fire first fish fit five flat floor flow flower fly follow food foot force forest form four free
fresh friend from front fruit full fun game garden gas gather gave get girl give glad glass go
gold good got grand grass gray great green ground group grow guess guide gun hair half hand
happy hard hat have head hear heart heat heavy held help here
"""
"""256 words, one for each value of a byte."""
_WORDS: Final = tuple(f" {word}".encode() for word in _VOCABULARY.split())


@lru_cache(maxsize=_CACHED_PIECES)
def words_of(piece: Piece, salt: str = "") -> bytes:
    """As many words as the piece has tokens, a space before each. Another `salt`, other words.

    SHAKE-128 gives any number of bytes, the first ones first. All of it is safe within JSON.
    """
    drawn = hashlib.shake_128(f"{salt} {piece.name}".encode()).digest(piece.tokens)
    return b"".join(map(_WORDS.__getitem__, drawn))
