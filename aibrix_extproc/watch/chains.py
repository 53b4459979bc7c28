"""Where in a prompt a block stands, from the events of one source.

Owns the depth of blocks by their names (`index.names`), and, only where asked for, their tokens.
The index needs neither, so they are kept beside it, within a bound that all sources share. Knows no
block key and no other source.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from aibrix_extproc.index.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from aibrix_extproc.index.names import Names

MAX_NOTES: Final = 500_000
"""Blocks with a note, over all sources: about 60 MB, tokens not counted."""


@dataclass(slots=True)
class Room:
    """What the sources' notes share."""

    left: int = MAX_NOTES
    with_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of one block."""

    depth: int
    """Blocks before it in its prompt."""
    tokens: tuple[int, ...] | None = None


class Chains:
    """The notes of one source."""

    def __init__(self, names: Names, room: Room) -> None:
        """`names` with the seed that the index has for this source."""
        self._names = names
        self._room = room
        self._depths: dict[int, int] = {}
        self._tokens: dict[int, tuple[int, ...]] = {}

    def note(self, events: Iterable[Event]) -> None:
        """What one batch says."""
        for event in events:
            if isinstance(event, BlockStored):
                self._stored(event)
            elif isinstance(event, BlockRemoved):
                for name in self._names.of_all(event.block_hashes):
                    self._drop(name)
            elif isinstance(event, AllBlocksCleared):
                self.clear()

    def find(self, name: int) -> Note | None:
        """The note of a block; None where there is none."""
        depth = self._depths.get(name)
        if depth is None:
            return None
        return Note(depth, self._tokens.get(name))

    def clear(self) -> None:
        """The source was emptied."""
        self._room.left += len(self._depths)
        self._depths.clear()
        self._tokens.clear()

    def _stored(self, event: BlockStored) -> None:
        blocks, size = len(event.block_hashes), event.block_size
        if not blocks or size < 1 or len(event.token_ids) != blocks * size:
            return
        depth = 0
        if event.parent_block_hash is not None:
            before = self._depths.get(self._names.of(event.parent_block_hash))
            if before is None:
                return
            depth = before + 1
        for place, name in enumerate(self._names.of_all(event.block_hashes)):
            if name not in self._depths:
                if self._room.left <= 0:
                    return
                self._room.left -= 1
            self._depths[name] = depth + place
            if self._room.with_tokens:
                self._tokens[name] = tuple(event.token_ids[place * size : (place + 1) * size])

    def _drop(self, name: int) -> None:
        if self._depths.pop(name, None) is not None:
            self._room.left += 1
            self._tokens.pop(name, None)
