"""One source's part of the index as bytes: what `apply` needs to go on as if nothing had been.

Owns the layout, which both back ends read and write (`core/src/snapshot.rs` too), and what is
refused. Knows no file and no sequence number: those are `aibrix_extproc.snapshot`'s.

All integers are unsigned and little-endian; a list is its length and then its items.

    export  = "AIBKVSRC" ‖ u32 version 1 ‖ u64 seed of names ‖ u8 full ‖ u64 lookahead tokens
            ‖ u64 groups that named a kind, a bit each ‖ u64 those that are indexed
            ‖ u32 shelves ‖ shelf … ‖ u32 orphans ‖ orphan … ‖ u64 checksum
    shelf   = u16 bytes ‖ medium, UTF-8 ‖ u8 group ‖ u32 tokens per block (0: none yet)
            ‖ u64 blocks ‖ u64 name … ‖ u64 block key …
            ‖ u64 blocks with copies ‖ u64 name … ‖ u64 copies beyond the first …
    orphan  = u32 its shelf ‖ u64 name ‖ u64 name of its parent ‖ u64 copies
            ‖ u32 bytes ‖ tokens ‖ u32 bytes ‖ extras

Names stand in rising order, orphans oldest first, shelves as they came. So equal sources are equal
bytes, and a name that stands twice is seen at once. The checksum is XXH3 (64 bits, seed 0) of all
before it. It finds damage; who writes an export on purpose can make it say anything that fits
the layout, and no more: lengths are compared with what is there before anything is made of them.
"""

import struct
import sys
from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from msgspec import Struct
from xxhash import xxh3_64_intdigest

from aibrix_extproc.index.events import MAX_MEDIUM_CHARACTERS
from aibrix_extproc.index.keys import TOKEN_BYTES
from aibrix_extproc.index.source_state import MAX_GROUPS, MAX_SHELVES

VERSION: Final = 1
MAGIC: Final = b"AIBKVSRC"
MAX_COPIES: Final = 2**48
"""Of one block. No engine comes near, and sums of it fit into 64 bits."""

_HEAD: Final = struct.Struct("<8sI")
_FIXED: Final = struct.Struct("<QBQQQ")
_SHELF: Final = struct.Struct("<BI")
_ORPHAN: Final = struct.Struct("<IQQQ")
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_KEY_BYTES: Final = 8
_FULL_AT: Final = _HEAD.size + _U64.size


class SavedShelf(Struct, frozen=True):
    """One (medium, group) and its blocks."""

    medium: str
    group: int
    block_size: int
    """In tokens; 0 before a block was placed."""
    names: Sequence[int]
    """Rising."""
    keys: Sequence[int]
    """Of the same blocks."""
    copied: Sequence[int]
    """Names, rising, of blocks with more than one copy."""
    copies: Sequence[int]
    """Theirs, beyond the first."""


class SavedOrphan(Struct, frozen=True):
    """One parked block."""

    shelf: int
    """Its place among the shelves."""
    name: int
    parent: int
    copies: int
    tokens: bytes
    extras: bytes


class SavedSource(Struct, frozen=True):
    """One source."""

    seed: int
    full: bool
    lookahead_tokens: int
    kinds: dict[int, bool]
    """Group that named its kind → whether it is indexed."""
    shelves: list[SavedShelf]
    orphans: list[SavedOrphan]
    """Oldest first."""


# -- writing --------------------------------------------------------------------------------------


def encode(source: SavedSource) -> bytes:
    """The bytes of a source."""
    named = sum(1 << group for group in source.kinds)
    indexed = sum(1 << group for group, kept in source.kinds.items() if kept)
    parts = [
        _HEAD.pack(MAGIC, VERSION),
        _FIXED.pack(source.seed, source.full, source.lookahead_tokens, named, indexed),
        _U32.pack(len(source.shelves)),
    ]
    for shelf in source.shelves:
        medium = shelf.medium.encode()
        parts += [_U16.pack(len(medium)), medium, _SHELF.pack(shelf.group, shelf.block_size)]
        parts += [_U64.pack(len(shelf.names)), _packed(shelf.names), _packed(shelf.keys)]
        parts += [_U64.pack(len(shelf.copied)), _packed(shelf.copied), _packed(shelf.copies)]
    parts.append(_U32.pack(len(source.orphans)))
    for orphan in source.orphans:
        parts.append(_ORPHAN.pack(orphan.shelf, orphan.name, orphan.parent, orphan.copies))
        parts += [_U32.pack(len(orphan.tokens)), orphan.tokens]
        parts += [_U32.pack(len(orphan.extras)), orphan.extras]
    data = b"".join(parts)
    return data + _U64.pack(xxh3_64_intdigest(data))


def is_full(data: bytes) -> bool:
    """Whether an export says that its source left out blocks for want of room."""
    return data[_FULL_AT : _FULL_AT + 1] == b"\1"


def _packed(values: Sequence[int]) -> bytes:
    packed = array("Q", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


# -- reading --------------------------------------------------------------------------------------


def decode(data: bytes) -> SavedSource:
    """What the bytes say, checked. Takes no more memory than a small multiple of them.

    Raises ValueError that says what is wrong: no export, another version, damaged.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("these bytes are no export of a source")
    if len(data) < _HEAD.size + _U64.size:
        raise ValueError("the export is damaged: it ends too early")
    version = _HEAD.unpack_from(data)[1]
    if version != VERSION:
        raise ValueError(f"an export of version {version}; this index reads version {VERSION}")
    body, (checksum,) = data[: -_U64.size], _U64.unpack(data[-_U64.size :])
    if xxh3_64_intdigest(body) != checksum:
        raise ValueError("the export is damaged: its checksum is wrong")
    return _Reader(body).source()


class _Reader:
    """Reads one export from its start to its end."""

    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)
        self._at = _HEAD.size

    def source(self) -> SavedSource:
        seed, full, lookahead, named, indexed = self._fields(_FIXED)
        _check(full <= 1, "a flag is neither 0 nor 1")
        _check(not indexed & ~named, "a group is indexed that named no kind")
        groups = (group for group in range(MAX_GROUPS) if named >> group & 1)
        kinds = {group: bool(indexed >> group & 1) for group in groups}
        (count,) = self._fields(_U32)
        _check(count <= MAX_SHELVES, f"it has {count} shelves")
        shelves = [self._shelf() for _ in range(count)]
        _check_shelves(shelves)
        (count,) = self._fields(_U32)
        orphans = [self._orphan(len(shelves)) for _ in range(count)]
        places = {(orphan.shelf, orphan.name) for orphan in orphans}
        _check(len(places) == len(orphans), "an orphan stands twice")
        _check(self._at == len(self._body), "bytes follow its end")
        return SavedSource(seed, bool(full), lookahead, kinds, shelves, orphans)

    def _shelf(self) -> SavedShelf:
        (length,) = self._fields(_U16)
        try:
            medium = bytes(self._take(length)).decode()
        except UnicodeDecodeError:
            raise _damaged("a medium is no UTF-8") from None
        _check(len(medium) <= MAX_MEDIUM_CHARACTERS, "the name of a medium is too long")
        group, block_size = self._fields(_SHELF)
        _check(group < MAX_GROUPS, f"a group has the number {group}")
        names, keys = self._columns("the blocks of a shelf")
        copied, copies = self._columns("the copies of a shelf")
        _check(not names or block_size > 0, "a shelf has blocks of no size")
        _check(set(copied) <= set(names), "there are copies of no block")
        _check(all(0 < n <= MAX_COPIES for n in copies), "a number of copies is impossible")
        return SavedShelf(medium, group, block_size, names, keys, copied, copies)

    def _columns(self, what: str) -> "tuple[array[int], array[int]]":
        (count,) = self._fields(_U64)
        names, values = self._numbers(count), self._numbers(count)
        rising = all(one < next_one for one, next_one in pairwise(names))
        _check(rising, f"{what} are not in order, or stand twice")
        return names, values

    def _numbers(self, count: int) -> "array[int]":
        numbers = array("Q")
        numbers.frombytes(self._take(count * _KEY_BYTES))
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers

    def _orphan(self, shelves: int) -> SavedOrphan:
        shelf, name, parent, copies = self._fields(_ORPHAN)
        _check(shelf < shelves, "an orphan is on no shelf")
        _check(0 < copies <= MAX_COPIES, "a number of copies is impossible")
        tokens, extras = self._bytes(), self._bytes()
        _check(bool(tokens) and not len(tokens) % TOKEN_BYTES, "an orphan has no whole tokens")
        return SavedOrphan(shelf, name, parent, copies, tokens, extras)

    def _bytes(self) -> bytes:
        (length,) = self._fields(_U32)
        return bytes(self._take(length))

    def _fields(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self._take(layout.size))

    def _take(self, length: int) -> memoryview:
        end = self._at + length
        _check(end <= len(self._body), "it ends too early")
        start, self._at = self._at, end
        return self._body[start:end]


def _check_shelves(shelves: Sequence[SavedShelf]) -> None:
    """A place has one shelf, and a name one meaning on all of them."""
    places = {(shelf.medium, shelf.group) for shelf in shelves}
    _check(len(places) == len(shelves), "a shelf stands twice")
    if len(shelves) > 1:
        meanings: dict[int, int] = {}
        for shelf in shelves:
            for name, key in zip(shelf.names, shelf.keys, strict=True):
                _check(meanings.setdefault(name, key) == key, "a hash means two blocks")


def _check(good: bool, why: str) -> None:
    if not good:
        raise _damaged(why)


def _damaged(why: str) -> ValueError:
    return ValueError(f"the export is damaged: {why}")
