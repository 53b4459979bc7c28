"""How far one source was followed, in a form that outlives this process, and what proves it.

Owns the digest of a payload. Payloads carry the engine's clock, so no two processes of an engine
send equal ones: the number and the digest of one batch name the process that sent it. Knows
neither files nor states.
"""

from dataclasses import dataclass
from typing import Final

import xxhash

DIGEST_BYTES: Final = 16


def digest_of(payload: bytes) -> bytes:
    """What is remembered of a batch: DIGEST_BYTES bytes, the same on every machine."""
    return xxhash.xxh3_128_digest(payload)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The last batch applied of one engine process: what the index holds is what it left."""

    sequence: int
    """Its number, from 0."""
    digest: bytes
    """`digest_of` its payload."""
    complete: bool
    """Every batch since the engine's start, or since it was empty, is applied: EXACT."""

    def __post_init__(self) -> None:
        """Raises ValueError for what no source can have been at."""
        if not 0 <= self.sequence < 2**64 - 1 or len(self.digest) != DIGEST_BYTES:
            raise ValueError(
                f"no checkpoint: batch {self.sequence} with {len(self.digest)} bytes of digest"
            )
