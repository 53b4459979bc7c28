"""A source's state out of one index and into another one.

Owns what of a state is saved, and how it is built up again: in stretches, seen by nobody before
its end. Knows no byte of the layout (`saved`).
"""

from aibrix_extproc.index.gate import STRETCH_BLOCKS, Change
from aibrix_extproc.index.orphans import Parked
from aibrix_extproc.index.results import FULL
from aibrix_extproc.index.saved import SavedOrphan, SavedShelf, SavedSource
from aibrix_extproc.index.source_state import Shelf, SourceState


class Frozen:
    """A copy of a state at one moment, cheap to take, turned into what is saved afterwards."""

    def __init__(self, state: SourceState, seed: int, *, orphans: bool) -> None:
        """Alone with the state; takes some 10 ms for a million blocks."""
        self._seed = seed
        self._full = state.full
        self._lookahead_tokens = state.lookahead_tokens
        self._kinds = dict(state.kinds)
        self._shelves = [
            (shelf, shelf.block_size, shelf.blocks.copy(), shelf.more.copy())
            for shelf in state.shelves.values()
        ]
        self._orphans = [(block, block.copies) for block in state.orphans if orphans]

    def saved(self) -> SavedSource:
        """What is saved of it; needs nobody's leave."""
        places = {shelf: at for at, (shelf, *_) in enumerate(self._shelves)}
        return SavedSource(
            self._seed,
            self._full,
            self._lookahead_tokens,
            self._kinds,
            [self._shelf(*parts) for parts in self._shelves],
            [
                SavedOrphan(
                    places[block.shelf],
                    block.block_hash,
                    block.parent,
                    copies,
                    block.tokens,
                    block.extras,
                )
                for block, copies in self._orphans
            ],
        )

    @staticmethod
    def _shelf(
        shelf: Shelf, block_size: int | None, blocks: dict[int, int], more: dict[int, int]
    ) -> SavedShelf:
        names, copied = sorted(blocks), sorted(more)
        return SavedShelf(
            shelf.medium,
            shelf.group,
            block_size or 0,
            names,
            [blocks[name] for name in names],
            copied,
            [more[name] for name in copied],
        )


def restore(state: SourceState, saved: SavedSource, max_orphans: int, change: Change) -> None:
    """Fill a blank state that nobody sees yet. What the index has no room for is left out, and
    the state is full then; of too many orphans the oldest are."""
    state.kinds = dict(saved.kinds)
    state.lookahead_tokens = saved.lookahead_tokens
    shelves = []
    for said in saved.shelves:
        shelf = state.add_shelf(said.medium, said.group)
        shelves.append(shelf)
        _place_all(state, shelf, said, change)
        for name, copies in zip(said.copied, said.copies, strict=True):
            if name in shelf.blocks:
                state.add_copies(shelf, name, copies)
    for orphan in saved.orphans[max(0, len(saved.orphans) - max_orphans) :]:
        content = (orphan.name, orphan.parent, orphan.tokens, orphan.extras, orphan.copies)
        state.park(Parked(shelves[orphan.shelf], *content))
    state.full = state.full or saved.full
    # Last, for this is what makes it count for depth.
    for shelf, said in zip(shelves, saved.shelves, strict=True):
        if said.block_size:
            state.note_block_size(shelf, said.block_size)


def _place_all(state: SourceState, shelf: Shelf, said: SavedShelf, change: Change) -> None:
    done = 0
    while done < len(said.names):
        end = done + STRETCH_BLOCKS
        placed, refusal = state.place(shelf, said.names[done:end], said.keys[done:end])
        done += placed
        change.left -= placed
        if change.left <= 0:
            change.pause()
        if refusal == FULL:
            return
