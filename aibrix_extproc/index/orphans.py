"""Blocks whose parent is unknown, waiting for it.

Owns where they wait, in which order they go, and their share of the index's size. Knows no key:
an orphan is never guessed to be a root, so it has none until its parent has one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aibrix_extproc.index.masks import Usage

if TYPE_CHECKING:
    from aibrix_extproc.index.source_state import Shelf

PARKED_BYTES: Final = 600
"""What a parked block takes beside its tokens and extras (CPython 3.11)."""


@dataclass(slots=True)
class Parked:
    """A block whose parent is unknown."""

    shelf: "Shelf"
    block_hash: int
    parent: int
    tokens: bytes
    extras: bytes
    copies: int = 1
    """How often it was stored and not removed."""

    @property
    def size_bytes(self) -> int:
        """Its share of the index's size, however many copies."""
        return PARKED_BYTES + len(self.tokens) + len(self.extras)

    def is_like(self, other: "Parked") -> bool:
        """Whether both say the same of their hash."""
        mine = (self.parent, self.tokens, self.extras)
        return mine == (other.parent, other.tokens, other.extras)


class Orphans:
    """The parked blocks of one source, oldest first."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._bytes = 0
        self._parked: dict[tuple[Shelf, int], Parked] = {}
        self.by_parent: dict[int, dict[tuple[Shelf, int], Parked]] = {}
        """Parent → what waits for it; without empty entries."""

    def __len__(self) -> int:
        """Parked blocks; copies of one count once."""
        return len(self._parked)

    def __iter__(self) -> Iterator[Parked]:
        """The parked blocks, oldest first."""
        return iter(self._parked.values())

    def find(self, shelf: "Shelf", block_hash: int) -> Parked | None:
        """The parked block of that hash on that shelf."""
        return self._parked.get((shelf, block_hash))

    def add(self, block: Parked) -> None:
        """Park a block that is not parked yet."""
        place = (block.shelf, block.block_hash)
        self._parked[place] = block
        self.by_parent.setdefault(block.parent, {})[place] = block
        self._bytes += block.size_bytes
        self._usage.bytes += block.size_bytes

    def remove(self, block: Parked) -> None:
        """Drop a parked block with all its copies."""
        place = (block.shelf, block.block_hash)
        del self._parked[place]
        siblings = self.by_parent[block.parent]
        del siblings[place]
        if not siblings:
            del self.by_parent[block.parent]
        self._bytes -= block.size_bytes
        self._usage.bytes -= block.size_bytes

    def take_copy(self, shelf: "Shelf", block_hash: int) -> bool:
        """Drop one copy; False where none is parked."""
        block = self.find(shelf, block_hash)
        if block is None:
            return False
        block.copies -= 1
        if not block.copies:
            self.remove(block)
        return True

    def drop_oldest(self) -> None:
        """Drop the block that is parked longest."""
        self.remove(next(iter(self._parked.values())))

    def take_child(self, parent: int) -> Parked | None:
        """Take out the oldest block that waits for this parent; None where none does."""
        siblings = self.by_parent.get(parent)
        if not siblings:
            return None
        block = next(iter(siblings.values()))
        self.remove(block)
        return block

    def clear(self) -> None:
        """Drop all of them."""
        self._usage.bytes -= self._bytes
        self._bytes = 0
        self._parked = {}
        self.by_parent = {}
