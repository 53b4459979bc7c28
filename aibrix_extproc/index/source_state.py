"""What one source holds, as far as its events said.

Owns the meaning of the engine's hashes within one source, the count of copies, and which group
counts for depth. Hashes are known here by their names (`names`). Knows no event, no token and no
other source: the nonsense of one engine cannot reach what is known of another.

- A hash means one block key, on whatever shelf it stands. Each further store of it on a shelf
  is one more copy there, and each removal takes one copy, a placed one before a parked one.
- Two hashes may mean one key (a salt that the wire does not tell, before vLLM 0.17): the block
  is held until the last of them is gone.
- A hash that is stored again with other content is nonsense. Neither is believed: all copies of
  the hash are taken back, on all shelves, and the new block is not placed.
- The shelf of the lowest group on the GPU counts for depth, and no other.
"""

from collections.abc import Sequence
from typing import Final

from aibrix_extproc.index.blocks import GPU
from aibrix_extproc.index.gate import Change
from aibrix_extproc.index.masks import BLOCK_BYTES, NOTE_BYTES, PLACEMENT_BYTES, ModelMasks
from aibrix_extproc.index.orphans import Orphans, Parked
from aibrix_extproc.index.results import CONFLICT, FULL

MAX_GROUPS: Final = 64
"""Groups are numbered below this; engines have a handful."""
MAX_SHELVES: Final = 64
"""Of one source. Bounds how wide a hostile source can make the masks."""
INDEXED_KINDS: Final = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
"""Kinds of group that keep every block of a prefix (vLLM names kinds from 0.22)."""

_NEW_BLOCK_BYTES: Final = PLACEMENT_BYTES + BLOCK_BYTES


class Shelf:
    """One (medium, group) of a source, and the blocks that stand there."""

    __slots__ = ("bit", "block_size", "blocks", "group", "medium", "more", "placements", "twins")

    def __init__(self, medium: str, group: int, bit: int) -> None:
        self.medium = medium
        self.group = group
        self.bit = bit
        self.block_size: int | None = None
        """Tokens per block of the last block placed here."""
        self.blocks: dict[int, int] = {}
        """Hash → what it means, a block key."""
        self.more: dict[int, int] = {}
        """Hash → copies beyond the first. Mostly empty."""
        self.twins: dict[int, int] = {}
        """Key → hashes here that mean it, beyond the first. Nearly always empty."""
        self.placements = 0
        """All copies of all blocks."""

    @property
    def notes_bytes(self) -> int:
        """What the notes of copies and twins take."""
        return NOTE_BYTES * (len(self.more) + len(self.twins))


class SourceState:
    """One source's placements, orphans, groups and block size, from one clear to the next.

    A clear replaces it as a whole: nobody who still works on an old one can touch the new one.
    """

    def __init__(self, source: int, masks: ModelMasks) -> None:
        self._source = source
        self._masks = masks
        self._usage = masks.usage
        self.shelves: dict[tuple[str, int], Shelf] = {}
        self.counted: Shelf | None = None
        """The shelf whose blocks are the source's depth."""
        self.orphans = Orphans(masks.usage)
        self.full = False
        self.lookahead_tokens = 0
        """Most tokens behind a block that a hash was said to cover."""
        self.kinds: dict[int, bool] = {}
        """Group that named its kind → whether it keeps every block of a prefix."""

    @property
    def blank(self) -> bool:
        """Nothing was said of it yet."""
        return not (self.shelves or self.kinds or self.orphans.by_parent or self.lookahead_tokens)

    def successor(self) -> "SourceState":
        """The state after AllBlocksCleared: empty, with the same groups and block sizes."""
        after = SourceState(self._source, self._masks)
        after.lookahead_tokens = self.lookahead_tokens
        after.kinds = self.kinds
        for shelf in self.shelves.values():
            new = after.add_shelf(shelf.medium, shelf.group)
            if shelf.block_size is not None:
                after.note_block_size(new, shelf.block_size)
        return after

    # -- groups and shelves -------------------------------------------------------------------

    def learn_kind(self, group: int, kind: str | None) -> bool:
        """Note what kind of group this is; whether its blocks are indexed.

        A group that never named a kind (vLLM 0.20 and 0.21) is indexed only if it is 0.
        """
        if not 0 <= group < MAX_GROUPS:
            return False
        if kind is not None:
            self.kinds[group] = kind in INDEXED_KINDS
        return self.kinds.get(group, group == 0)

    def shelf_for(self, medium: str, group: int) -> Shelf | None:
        """Where blocks of an indexed group stand; None where the source has too many shelves."""
        shelf = self.shelves.get((medium, group))
        if shelf is None and len(self.shelves) < MAX_SHELVES:
            shelf = self.add_shelf(medium, group)
        return shelf

    def add_shelf(self, medium: str, group: int) -> Shelf:
        """A new one, of a place that has none yet."""
        shelf = Shelf(medium, group, self._masks.take_bit(self._source))
        self.shelves[medium, group] = shelf
        if medium == GPU and (self.counted is None or group < self.counted.group):
            if self.counted is not None and self.counted.block_size is not None:
                self._masks.uncount(self.counted.bit, self.counted.block_size)
            self.counted = shelf
        return shelf

    def note_block_size(self, shelf: Shelf, block_size: int) -> None:
        """The size of a block just placed: depth is in blocks of the last one's size."""
        if shelf.block_size == block_size:
            return
        if shelf is self.counted:
            if shelf.block_size is not None:
                self._masks.uncount(shelf.bit, shelf.block_size)
            self._masks.count(shelf.bit, block_size)
        shelf.block_size = block_size

    # -- blocks -------------------------------------------------------------------------------

    def meaning(self, block_hash: int) -> int | None:
        """The block key that a hash means; None where no shelf holds it."""
        for shelf in self.shelves.values():
            key = shelf.blocks.get(block_hash)
            if key is not None:
                return key
        return None

    def place(
        self, shelf: Shelf, hashes: Sequence[int], keys: Sequence[int]
    ) -> tuple[int, str | None]:
        """Put one copy of each block on a shelf, in order, up to the first that needs care.

        Returns how many were placed, and why the next one was refused (CONFLICT, FULL), if it
        was. Stops, with no refusal, after a block that orphans wait for, and where what else
        fits must be counted anew; call it again for the rest.
        """
        blocks, awaited, notes_bytes = shelf.blocks, self.orphans.by_parent, shelf.notes_bytes
        others = self._blocks_beside(shelf) if len(self.shelves) > 1 else ()
        may_add = 0 if self.full else self._usage.room_bytes // _NEW_BLOCK_BYTES
        added: list[int] = []
        placed, refusal = 0, None
        for block_hash, key in zip(hashes, keys, strict=True):
            held = blocks.get(block_hash)
            if held is None:
                if others and any(other.get(block_hash, key) != key for other in others):
                    refusal = CONFLICT
                    break
                if len(added) >= may_add:
                    refusal = None if added else FULL
                    break
                blocks[block_hash] = key
                added.append(key)
            elif held == key:
                shelf.more[block_hash] = shelf.more.get(block_hash, 0) + 1
            else:
                refusal = CONFLICT
                break
            placed += 1
            if awaited and block_hash in awaited:
                break
        shelf.placements += placed
        self._usage.bytes += len(added) * PLACEMENT_BYTES
        for key in self._masks.set(added, shelf.bit):
            shelf.twins[key] = shelf.twins.get(key, 0) + 1
        self._usage.bytes += shelf.notes_bytes - notes_bytes
        if refusal == CONFLICT:
            self.disbelieve(hashes[placed])
        elif refusal == FULL:
            self.full = True
        return placed, refusal

    def _blocks_beside(self, shelf: Shelf) -> list[dict[int, int]]:
        return [other.blocks for other in self.shelves.values() if other is not shelf]

    def add_copies(self, shelf: Shelf, block_hash: int, copies: int) -> None:
        """Count further copies of a block that stands on the shelf."""
        if copies:
            notes_bytes = shelf.notes_bytes
            shelf.more[block_hash] = shelf.more.get(block_hash, 0) + copies
            shelf.placements += copies
            self._usage.bytes += shelf.notes_bytes - notes_bytes

    def take(self, shelf: Shelf, block_hash: int) -> bool:
        """Take one copy of a block; False where the shelf has none, placed or parked."""
        if block_hash not in shelf.blocks:
            return self.orphans.take_copy(shelf, block_hash)
        more = shelf.more.get(block_hash, 0)
        if not more:
            self._vacate(shelf, block_hash)
            return True
        shelf.placements -= 1
        if more == 1:
            del shelf.more[block_hash]
            self._usage.bytes -= NOTE_BYTES
        else:
            shelf.more[block_hash] = more - 1
        return True

    def park(self, block: Parked) -> str | None:
        """Let a block wait for its parent. Returns None, or why not: CONFLICT or FULL."""
        parked = self.orphans.find(block.shelf, block.block_hash)
        if parked is not None:
            if not parked.is_like(block):
                self.disbelieve(block.block_hash)
                return CONFLICT
            parked.copies += 1
            return None
        if self.full or self._usage.room_bytes < block.size_bytes:
            self.full = True
            return FULL
        self.orphans.add(block)
        return None

    def disbelieve(self, block_hash: int) -> None:
        """Take back all copies of a hash, placed and parked, on all shelves."""
        for shelf in self.shelves.values():
            if block_hash in shelf.blocks:
                self._vacate(shelf, block_hash)
            parked = self.orphans.find(shelf, block_hash)
            if parked is not None:
                self.orphans.remove(parked)

    def _vacate(self, shelf: Shelf, block_hash: int) -> None:
        """Take all copies of a hash off one shelf."""
        notes_bytes = shelf.notes_bytes
        key = shelf.blocks.pop(block_hash)
        shelf.placements -= 1 + shelf.more.pop(block_hash, 0)
        self._usage.bytes -= PLACEMENT_BYTES
        twins = shelf.twins.pop(key, 0)
        if twins > 1:
            shelf.twins[key] = twins - 1
        self._usage.bytes += shelf.notes_bytes - notes_bytes
        if not twins:
            self._masks.unset(key, shelf.bit)

    # -- the end ------------------------------------------------------------------------------

    def retire(self, change: Change) -> None:
        """Count for nothing from now on, then take everything off the shelves, in stretches.

        The first part takes the same time however much is held. Nobody else may hold on to
        this state as a source's present one.
        """
        if self.counted is not None and self.counted.block_size is not None:
            self._masks.uncount(self.counted.bit, self.counted.block_size)
        self.orphans.clear()
        for shelf in self.shelves.values():
            self._usage.bytes -= shelf.notes_bytes
            while shelf.blocks:
                _, key = shelf.blocks.popitem()
                self._usage.bytes -= PLACEMENT_BYTES
                self._masks.unset(key, shelf.bit)
                change.left -= 1
                if change.left <= 0:
                    change.pause()
            self._masks.free_bit(shelf.bit)
