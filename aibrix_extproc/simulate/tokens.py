"""The tokens of prompts and answers, made from names, and the hashes of their blocks.

Owns the way from a piece to token ids that are the same in every run. Knows no request and no
engine.
"""

import hashlib
from array import array
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from xxhash import xxh3_64_intdigest

from aibrix_extproc.workloads.pieces import Piece

_TOKEN_BYTES: Final = 4
_NO_ZERO: Final = bytes([255, *range(1, 256)])
"""Ids are 256 to 65,535: the high byte is never 0."""


def token_ids(pieces: Iterable[Piece]) -> "array[int]":
    """The ids of these pieces, one after the other."""
    ids = array("I")
    for piece in pieces:
        ids.frombytes(_expanded(piece.name, piece.tokens))
    return ids


def block_hashes(ids: "array[int]", block_size: int) -> list[int]:
    """The engines' name of each full block: chained over its tokens, so that equal prefixes have
    equal names. An index must not care what they are; here they are the same in every pod."""
    width = block_size * _TOKEN_BYTES
    data = memoryview(ids).cast("B")
    parent, hashes = 0, []
    for start in range(0, len(data) - width + 1, width):
        parent = xxh3_64_intdigest(data[start : start + width], parent)
        hashes.append(parent)
    return hashes


@lru_cache(maxsize=8192)
def _expanded(name: str, tokens: int) -> bytes:
    """Little-endian 32-bit ids. SHAKE-128 gives any number of bytes, the first ones first."""
    drawn = hashlib.shake_128(name.encode()).digest(2 * tokens)
    out = bytearray(_TOKEN_BYTES * tokens)
    out[0::4] = drawn[0::2]
    out[1::4] = drawn[1::2].translate(_NO_ZERO)
    return bytes(out)
