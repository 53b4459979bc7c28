"""Names of engines' hashes: 64 bits each, whatever the engine's own are.

Equal hashes have equal names. An integer from 0 to 2^64 − 1 is its own name; negative integers
and byte strings are hashed with a secret seed, so that nobody outside can bring about that two
hashes of one source share a name. By chance it is as likely as that two block keys collide.

A source keeps its seed for as long as it lives, and takes it along where it is exported: what the
engine says later must find what it said before. Knows neither events nor blocks.
"""

import secrets
from collections.abc import Iterable
from typing import Final

from xxhash import xxh3_64_intdigest

from aibrix_extproc.index.events import BlockHash

MAX_U64: Final = 2**64 - 1
_INTEGER_BYTES: Final = 16


class Names:
    """Makes the names of one source's hashes."""

    __slots__ = ("seed",)

    def __init__(self, seed: int | None = None) -> None:
        """`seed` is an unsigned 64-bit int; without one it is drawn at random."""
        self.seed = secrets.randbits(64) if seed is None else seed

    def of(self, block_hash: BlockHash) -> int:
        """The name of one hash."""
        if isinstance(block_hash, bytes):
            return int(xxh3_64_intdigest(block_hash, self.seed ^ MAX_U64))
        if 0 <= block_hash <= MAX_U64:
            return block_hash
        wide = block_hash.to_bytes(_INTEGER_BYTES, "little", signed=True)
        return int(xxh3_64_intdigest(wide, self.seed))

    def of_all(self, hashes: Iterable[BlockHash]) -> list[int]:
        """The names of hashes, in their order."""
        of = self.of
        return [h if h.__class__ is int and 0 <= h <= MAX_U64 else of(h) for h in hashes]
