"""One payload's events, applied to one source.

Owns the order of things within a batch: what is placed, parked, joined and taken, and the pauses
that let requests in. Knows neither bytes on the wire nor other sources.

A BlockStored of n blocks means n stores of one block, each with the one before it as its parent.
So where a block in the middle is not believed, those behind it wait for it as orphans.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from aibrix_extproc.index.blocks import GPU, StoredBlocks, understand
from aibrix_extproc.index.events import (
    AllBlocksCleared,
    Batch,
    BlockRemoved,
    BlockStored,
    Unreadable,
)
from aibrix_extproc.index.gate import Gate
from aibrix_extproc.index.keys import TOKEN_BYTES, block_key
from aibrix_extproc.index.masks import ModelMasks
from aibrix_extproc.index.names import Names
from aibrix_extproc.index.orphans import Parked
from aibrix_extproc.index.results import (
    GROUP_NOT_INDEXED,
    LOSSES,
    ORPHAN_DROPPED,
    UNNAMED_ADAPTER,
    Applied,
)
from aibrix_extproc.index.source_state import Shelf, SourceState


@dataclass(frozen=True, slots=True)
class RemovedBlocks:
    """A BlockRemoved: one copy of each of these is gone from one shelf."""

    medium: str
    group: int
    hashes: Sequence[int]
    """By their names."""


Step = StoredBlocks | RemovedBlocks | AllBlocksCleared | Unreadable


@dataclass(slots=True)
class Source:
    """A source of the index: what `add_source` said of it, and its present state."""

    number: int
    model: str
    masks: ModelMasks
    lora_id: int | None
    lora_name: str | None
    state: SourceState
    """Replaced as a whole by a clear; a removed source is left with an empty one."""
    names: Names


class _Overtaken(Exception):
    """The source was cleared or removed during a pause; what is left of the batch is void."""


class Application:
    """Applies one batch to one source, once."""

    def __init__(self, source: Source, gate: Gate, max_orphans: int) -> None:
        self._source = source
        self._state = source.state
        self._change = gate.change()
        self._max_orphans = max_orphans
        self._stored = self._removed = self._cleared = self._parked = 0
        self._skipped: dict[str, int] = {}
        self._refusals: set[str] = set()

    def run(self, batch: Batch) -> Applied:
        """Apply the events in order, as far as nobody clears the source meanwhile."""
        source = self._source
        steps = [_understood(event, source) for event in batch.events]
        with self._change:
            self._state = source.state
            try:
                for step in steps:
                    self._apply(step)
            except _Overtaken:
                pass
        skipped = self._skipped
        return Applied(
            self._stored,
            self._removed,
            self._cleared,
            self._parked,
            skipped,
            bool(skipped) and not LOSSES.isdisjoint(skipped),
            batch.timestamp,
            len(steps),
        )

    def _apply(self, step: Step) -> None:
        if isinstance(step, StoredBlocks):
            self._store(step)
        elif isinstance(step, RemovedBlocks):
            self._remove(step)
        elif isinstance(step, AllBlocksCleared):
            self._clear()
        else:
            self._skip(step.reason)

    def _skip(self, reason: str) -> None:
        self._skipped[reason] = self._skipped.get(reason, 0) + 1
        self._spend(1)

    def _spend(self, blocks: int) -> None:
        """So many blocks of the stretch are used; let others in where it is at its end."""
        self._change.left -= blocks
        if self._change.left <= 0:
            self._change.pause()
            self._check_present()

    def _check_present(self) -> None:
        if self._source.state is not self._state:
            raise _Overtaken

    # -- AllBlocksCleared, BlockRemoved -------------------------------------------------------

    def _clear(self) -> None:
        before, self._state = self._state, self._state.successor()
        self._source.state = self._state
        self._cleared += 1
        before.retire(self._change)
        self._check_present()

    def _remove(self, event: RemovedBlocks) -> None:
        shelf = self._state.shelves.get((event.medium, event.group))
        if shelf is None:
            return
        for block_hash in event.hashes:
            if self._state.take(shelf, block_hash):
                self._removed += 1
            self._spend(1)

    # -- BlockStored --------------------------------------------------------------------------

    def _store(self, blocks: StoredBlocks) -> None:
        state = self._state
        indexed = state.learn_kind(blocks.group, blocks.kind)
        state.lookahead_tokens = max(state.lookahead_tokens, blocks.lookahead_tokens)
        if blocks.problem is not None:
            self._skip(blocks.problem)
            return
        if not blocks.hashes:
            return
        if blocks.unnamed_adapter:
            self._skip(UNNAMED_ADAPTER)
        shelf = state.shelf_for(blocks.medium, blocks.group) if indexed else None
        if shelf is None:
            self._skip(GROUP_NOT_INDEXED)
            return
        self._store_blocks(shelf, blocks)
        if self._refusals:
            for reason in self._refusals:
                self._skip(reason)
            self._refusals.clear()

    def _store_blocks(self, shelf: Shelf, blocks: StoredBlocks) -> None:
        """Place the blocks in runs, park one by one those whose parent is unknown."""
        state, hashes = self._state, blocks.hashes
        parent = blocks.parent or 0
        key = blocks.root if blocks.parent is None else state.meaning(parent)
        keys: list[int] = []
        done = 0
        while True:
            end = min(len(hashes), done + self._change.left)
            if key is None:
                self._park(Parked(shelf, hashes[done], parent, *blocks.content(done)))
                dealt_with = 1
            else:
                keys = keys[: end - done] or blocks.keys(key, done, end)
                run = hashes[done : done + len(keys)]
                dealt_with = self._place(shelf, run, keys, blocks.block_size)
            done += dealt_with
            if done == len(hashes):
                return
            parent = hashes[done - 1]
            key = state.meaning(parent)
            keys = keys[dealt_with:] if key is not None else []

    def _place(
        self, shelf: Shelf, hashes: Sequence[int], keys: Sequence[int], block_size: int
    ) -> int:
        """Place blocks, and what waits for the last of them; returns how many are dealt with."""
        state = self._state
        placed, refusal = state.place(shelf, hashes, keys)
        dealt_with = placed
        if refusal is not None:
            self._refusals.add(refusal)
            dealt_with += 1
        self._stored += placed
        if placed and shelf.block_size != block_size:
            state.note_block_size(shelf, block_size)
        self._spend(dealt_with)
        if placed and state.orphans.by_parent:
            self._join_children_of(hashes[placed - 1])
        return dealt_with

    # -- orphans ------------------------------------------------------------------------------

    def _park(self, block: Parked) -> None:
        refusal = self._state.park(block)
        if refusal is not None:
            self._refusals.add(refusal)
        else:
            self._parked += 1
            if len(self._state.orphans) > self._max_orphans:
                self._state.orphans.drop_oldest()
                self._skip(ORPHAN_DROPPED)
        self._spend(1)

    def _join_children_of(self, block_hash: int) -> None:
        """Place the orphans that wait for this block, then those that wait for them."""
        state = self._state
        parents = deque([block_hash])
        while parents:
            parent = parents.popleft()
            while (key := state.meaning(parent)) is not None:
                child = state.orphans.take_child(parent)
                if child is None:
                    break
                self._join(child, key)
                parents.append(child.block_hash)
                self._spend(1)

    def _join(self, child: Parked, parent_key: int) -> None:
        state = self._state
        key = block_key(parent_key, child.tokens, child.extras)
        placed, refusal = state.place(child.shelf, (child.block_hash,), (key,))
        if refusal is not None:
            self._refusals.add(refusal)
        if placed:
            state.add_copies(child.shelf, child.block_hash, child.copies - 1)
            self._stored += child.copies
            state.note_block_size(child.shelf, len(child.tokens) // TOKEN_BYTES)


def _understood(
    event: BlockStored | BlockRemoved | AllBlocksCleared | Unreadable, source: Source
) -> Step:
    """What an event means, as far as that needs no look at what the source holds."""
    if isinstance(event, BlockStored):
        return understand(event, source.names, source.lora_id, source.lora_name)
    if isinstance(event, BlockRemoved):
        medium = GPU if event.medium is None else event.medium
        return RemovedBlocks(medium, event.group_idx or 0, source.names.of_all(event.block_hashes))
    return event
