"""Which shelves hold a block: one int per block key and model, one bit per shelf.

A shelf is one (medium, group) of one source: it has a bit of its own, so that media and groups
never mix, and which of them counts for depth is a matter of choosing bits. A bit is handed out
again only when it stands in no mask any more.

Owns the masks, the bits and the size of the index. Knows no hash, event or token.

Size is counted, not measured, so that equal contents are of equal size: `PLACEMENT_BYTES` for
each block on a shelf, `BLOCK_BYTES` for each distinct block, `NOTE_BYTES` for each that has copies,
and what parked blocks hold. The
constants are what CPython 3.11 takes for dicts of that many ints and 100 sources.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Final

PLACEMENT_BYTES: Final = 100
BLOCK_BYTES: Final = 80
NOTE_BYTES: Final = 80
"""Of a block that a source has copies of, beside the block itself."""


class Usage:
    """The size of the whole index, kept by those who change it."""

    __slots__ = ("blocks", "bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes or sys.maxsize
        self.bytes = 0
        self.blocks = 0

    @property
    def room_bytes(self) -> int:
        """How much may be added; below 0 where the limit is passed."""
        return self.limit_bytes - self.bytes


class ModelMasks:
    """The masks of one model, and which bits count for depth."""

    def __init__(self, usage: Usage) -> None:
        self.usage = usage
        self.masks: dict[int, int] = {}
        """Block key → bits of the shelves that hold it; never 0."""
        self.sources = 0
        """Sources of this model; without any, its owner forgets it."""
        self._counted: dict[int, int] = {}
        """Block size → bits of the shelves that count and hold blocks of that size."""
        self._owners: list[int | None] = []
        """Bit number → source, None where the bit is free."""
        self._free: list[int] = []

    def take_bit(self, source: int) -> int:
        """A bit (as a mask) that stands in no mask."""
        if self._free:
            number = self._free.pop()
            self._owners[number] = source
        else:
            number = len(self._owners)
            self._owners.append(source)
        return 1 << number

    def free_bit(self, bit: int) -> None:
        """Give back a bit that stands in no mask any more."""
        number = bit.bit_length() - 1
        self._owners[number] = None
        self._free.append(number)

    def count(self, bit: int, block_size: int) -> None:
        """From now on this shelf counts for depth, in blocks of so many tokens."""
        self._counted[block_size] = self._counted.get(block_size, 0) | bit

    def uncount(self, bit: int, block_size: int) -> None:
        """It no longer does."""
        left = self._counted.get(block_size, 0) & ~bit
        if left:
            self._counted[block_size] = left
        else:
            self._counted.pop(block_size, None)

    def set(self, keys: Iterable[int], bit: int) -> list[int]:
        """Put blocks on a shelf. Returns the keys that stood there already."""
        masks, present, new = self.masks, [], 0
        for key in keys:
            mask = masks.get(key, 0)
            if not mask:
                masks[key] = bit
                new += 1
            elif mask & bit:
                present.append(key)
            else:
                masks[key] = mask | bit
        self.usage.blocks += new
        self.usage.bytes += new * BLOCK_BYTES
        return present

    def unset(self, key: int, bit: int) -> None:
        """Take a block off a shelf, if it stands there."""
        mask = self.masks.get(key, 0)
        left = mask & ~bit
        if left:
            self.masks[key] = left
        elif mask:
            del self.masks[key]
            self.usage.blocks -= 1
            self.usage.bytes -= BLOCK_BYTES

    def block_sizes(self) -> tuple[int, ...]:
        """Sizes, in tokens, of which a source holds blocks or held some."""
        return tuple(self._counted)

    def depths(self, block_size: int, keys: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(source, leading blocks that it holds without a hole) of each that holds any.

        Walks the keys until no source is left: one AND of two ints per block.
        """
        alive = self._counted.get(block_size, 0)
        for depth, mask in enumerate(map(self.masks.get, keys, repeat(0))):
            left = alive & mask
            if left != alive:
                if depth:
                    yield from self._each(alive ^ left, depth)
                alive = left
                if not alive:
                    return
        if keys:
            yield from self._each(alive, len(keys))

    def _each(self, bits: int, depth: int) -> Iterator[tuple[int, int]]:
        while bits:
            number = bits.bit_length() - 1
            bits ^= 1 << number
            owner = self._owners[number]
            if owner is not None:
                yield owner, depth
