"""What a source held of a prompt when its engine took the request: past batches in, a depth out.

Pure. An engine looks a prompt up in its cache when it schedules the request, which is after the
decision by the time on the wire and in its queue. Meanwhile blocks come and go; then its own events
name the prompt's new blocks, and from then on the index holds all of it. So the question is asked
of the moment just before that: what the index held (or was promised by requests sent earlier), with
the events in the order in which the engine wrote them, up to the one that names the end of this
prompt. A block that the request itself had computed never counts.

Only where something happened to the border of what was held are batches decoded. Whether it did is
seen by looking for the tokens of a few blocks in the bytes, under 1 µs for each kilobyte.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from aibrix_extproc.index.blocks import GPU
from aibrix_extproc.index.events import (
    AllBlocksCleared,
    BlockHash,
    BlockRemoved,
    BlockStored,
    decode_batch,
)

Payloads = Sequence[bytes | None]
"""Batches in order; None: the source was emptied by event sync."""

MAX_DECODED_BYTES: Final = 256 * 1024
"""Of the batches of one request: some 5 ms of work."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What was known of a prompt in the chosen source when its tokens were known."""

    ids: "array[int]"
    """As many of the prompt as are matched."""
    block_size: int
    held: int
    """Leading blocks in the index."""
    promised: int
    """Leading blocks with those of earlier requests' predictions; at least `held`."""
    decided: int
    """Leading blocks, predictions included, that counted at the decision."""
    adapter: str | None = None

    @property
    def full_blocks(self) -> int:
        """All blocks that the prompt fills."""
        return len(self.ids) // self.block_size


@dataclass(frozen=True, slots=True)
class Admitted:
    """What is known of the moment when the engine took the request."""

    depth: int
    """Leading blocks that were there."""
    evicted: bool = False
    """Some of those expected had been removed, by the source's own events."""
    emptied: bool = False
    """The source was emptied in between."""


class TooMuch(Exception):
    """More happened than may be looked at for one request."""


def admitted(expected: Expected, payloads: Payloads, known_at: int = 0) -> Admitted:
    """What the source held of the prompt just before it announced the prompt's own end.

    `payloads`: all batches since the decision; `known_at`: how many of them had come when
    `expected.held` was read. Raises TooMuch.
    """
    if None not in payloads and _is_quiet(expected, payloads):
        return Admitted(expected.promised)
    if sum(len(payload) for payload in payloads if payload) > MAX_DECODED_BYTES:
        raise TooMuch
    happened = list(_happened(expected, payloads))
    return _Replay(expected, happened, known_at).result()


def names_end(expected: Expected, payloads: Payloads) -> bool:
    """Whether one of these batches seems to store the last block that the prompt fills."""
    end = expected.full_blocks
    return end > 0 and _first_with(payloads, _written(expected, end - 1, end)) is not None


def _is_quiet(expected: Expected, payloads: Payloads) -> bool:
    """Nothing was computed of what was thought to be held, and the rest came in one piece.

    An engine computes a prompt from the first missing block to its end. So the last block that
    was expected is among those computed wherever any before it was missing.
    """
    depth, end = expected.promised, expected.full_blocks
    if depth and _first_with(payloads, _written(expected, depth - 1, depth)) is not None:
        return False
    if depth >= end:
        return True
    began = _first_with(payloads, _written(expected, depth, depth + 1))
    if began is None:
        return _first_with(payloads, _written(expected, end - 1, end)) is None
    return _written(expected, depth, end) in began


def _first_with(payloads: Payloads, needle: bytes) -> bytes | None:
    return next((one for one in payloads if one and needle in one), None)


def _written(expected: Expected, start: int, end: int) -> bytes:
    """The tokens of these blocks as they stand in a payload, between others of one list."""
    size = expected.block_size
    tokens = expected.ids[start * size : end * size].tolist()
    encoded = msgspec.msgpack.encode(tokens)
    return encoded[1 if len(tokens) < 16 else 3 if len(tokens) < 65536 else 5 :]


def _tokens(expected: Expected, block: int) -> list[int]:
    size = expected.block_size
    return expected.ids[block * size : (block + 1) * size].tolist()


# -- what happened to the prompt's blocks, one by one ------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stored:
    batch: int
    start: int
    end: int
    is_whole: bool
    """All blocks of the event are of this prompt."""


@dataclass(frozen=True, slots=True)
class _Removed:
    batch: int
    block: int


@dataclass(frozen=True, slots=True)
class _Emptied:
    batch: int


_Happened = _Stored | _Removed | _Emptied


def _happened(expected: Expected, payloads: Payloads) -> Iterator[_Happened]:
    """What the batches say of this prompt's blocks, in order.

    An engine's hash of a block is learned from the event that stores it, which may come after the
    one that removes it: hence two passes.
    """
    batches = [None if one is None else decode_batch(one).events for one in payloads]
    finder = _Finder(expected)
    found = [
        [finder.find(event) if isinstance(event, BlockStored) else None for event in batch or ()]
        for batch in batches
    ]
    for at, events in enumerate(batches):
        if events is None:
            yield _Emptied(at)
            continue
        for event, place in zip(events, found[at], strict=True):
            if place is not None:
                yield _Stored(at, *place)
            elif isinstance(event, BlockRemoved) and event.medium in (None, GPU):
                blocks = (finder.block_of.get(one) for one in event.block_hashes)
                yield from (_Removed(at, block) for block in blocks if block is not None)
            elif isinstance(event, AllBlocksCleared):
                yield _Emptied(at)


class _Finder:
    """Which of the prompt's blocks an event stores."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._blocks = [tuple(_tokens(expected, i)) for i in range(expected.full_blocks)]
        self._places: dict[tuple[int, ...], list[int]] = {}
        for block, tokens in enumerate(self._blocks):
            self._places.setdefault(tokens, []).append(block)
        self.block_of: dict[BlockHash, int] = {}
        """The engine's hash → number of the block in the prompt."""

    def find(self, event: BlockStored) -> tuple[int, int, bool] | None:
        """The first block, the one behind the last, and whether that is all that the event
        stores; None where it stores others."""
        size = self._expected.block_size
        if event.block_size != size or event.medium not in (None, GPU) or event.group_idx:
            return None
        named = event.lora_name or (None if event.lora_id is None else "")
        if named is not None and named != self._expected.adapter:
            return None
        tokens = event.token_ids
        start = self._start(event.parent_block_hash, tuple(tokens[:size]))
        if start is None:
            return None
        end = start
        for at, block_hash in enumerate(event.block_hashes):
            of_block = tuple(tokens[at * size : (at + 1) * size])
            if end >= len(self._blocks) or of_block != self._blocks[end]:
                break
            self.block_of[block_hash] = end
            end += 1
        if end == start:
            return None
        return start, end, end - start == len(event.block_hashes)

    def _start(self, parent: BlockHash | None, first: tuple[int, ...]) -> int | None:
        """By the block before it, where that is known, else by its tokens."""
        if parent is None:
            return 0
        known = self.block_of.get(parent)
        if known is not None:
            return known + 1
        return next((place for place in self._places.get(first, ()) if place), None)


class _Replay:
    """Goes through what happened, and remembers how deep the prompt was held at each store."""

    def __init__(self, expected: Expected, happened: Sequence[_Happened], known_at: int) -> None:
        self._expected = expected
        self._happened = happened
        came = {
            block
            for one in happened
            if isinstance(one, _Stored) and one.batch < known_at
            for block in range(one.start, one.end)
        }
        # What had come by then may be of this request itself, and counts from its event on only.
        self._copies = [
            int(block < expected.held and block not in came)
            for block in range(expected.full_blocks)
        ]
        is_promised = expected.promised > expected.held
        promised = expected.promised if is_promised else self._depth()
        self._foreseen = max(promised, expected.decided)
        self._evicted: set[int] = set()
        self._is_emptied = False
        self._stores: list[tuple[_Stored, int, bool]] = []
        """Each with the depth before it, and whether its first block had been evicted."""

    def result(self) -> Admitted:
        for one in self._happened:
            if isinstance(one, _Stored):
                if self._take(one):
                    return self._at_own_end()
            elif isinstance(one, _Removed):
                self._copies[one.block] = max(0, self._copies[one.block] - 1)
                if not self._copies[one.block]:
                    self._evicted.add(one.block)
            else:
                self._copies = [0] * len(self._copies)
                self._is_emptied = True
        # Its end was not announced: it was held, or events are missing.
        depth = min(self._expected.promised, self._depth())
        return self._admitted(depth)

    def _take(self, stored: _Stored) -> bool:
        """True where this is the prompt's end."""
        self._stores.append((stored, self._depth(), stored.start in self._evicted))
        for block in range(stored.start, stored.end):
            self._copies[block] += 1
        return stored.end == len(self._copies)

    def _at_own_end(self) -> Admitted:
        """The depth before the first store that is this request's own.

        A long prompt is computed in parts: a store that ends where the next one begins is a part
        of it, unless an earlier request was known to compute it, or it goes on with other blocks.
        One block alone is none: a part is as long as a step allows, and block by block engines
        announce their answers, the one that this prompt goes on from among them.
        """
        (own, depth, _), *before = reversed(self._stores)
        for stored, depth_before, was_evicted in before:
            is_next = stored.start < own.start <= stored.end  # of one preempted some may have gone
            is_part = is_next and stored.is_whole and stored.end - stored.start > 1
            if not is_part or (stored.start < self._foreseen and not was_evicted):
                break
            own, depth = stored, depth_before
        return self._admitted(depth)

    def _admitted(self, depth: int) -> Admitted:
        is_evicted = any(block < self._foreseen for block in self._evicted)
        return Admitted(depth, is_evicted, self._is_emptied)

    def _depth(self) -> int:
        missing = (block for block, copies in enumerate(self._copies) if not copies)
        return next(missing, len(self._copies))
