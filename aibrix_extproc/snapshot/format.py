"""The snapshot's layout: a head, one record for each source, an end with a checksum.

Owns the bytes of a file, and of a stream between replicas, which are the same. Knows neither where
they lie nor what a source's export holds.

Integers are unsigned and little-endian.

    snapshot = "AIBKVSNP" ‖ u32 version 1 ‖ f64 written, seconds since the epoch
             ‖ u64 limit of the index in bytes (0: none) ‖ record …
             ‖ u32 0 ‖ u32 records ‖ checksum
    record   = u32 bytes ‖ head, a MessagePack map (`RecordHead`)
             ‖ u64 bytes ‖ export (`index.saved`)

The checksum is XXH3 (128 bits, seed 0) of all before it. A stream that was cut off has none.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec
import xxhash

from aibrix_extproc.errors import ExtprocError

VERSION: Final = 1
MAGIC: Final = b"AIBKVSNP"
MAX_HEAD_BYTES: Final = 64 * 1024
CHECKSUM_BYTES: Final = 16

_MARK: Final = struct.Struct("<8sI")
_START: Final = struct.Struct("<dQ")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_PIECE_BYTES: Final = 1024 * 1024


class Refusal(StrEnum):
    """Why a snapshot is not used."""

    FOREIGN = "foreign"
    """These bytes are none."""
    VERSION = "version"
    """Another version of the layout."""
    DAMAGED = "damaged"
    """Cut off, changed, or no sense in it."""
    OLD = "old"
    """Written longer ago than AIBRIX_KV_SNAPSHOT_MAX_AGE."""
    UNREADABLE = "unreadable"
    """The file or the replica could not be read."""
    TOO_LARGE = "too_large"
    """The replica sends more than an index of this size can need."""


class SnapshotRefused(ExtprocError):
    """A snapshot that is not used; the message says why, and is for an operator."""

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RecordHead(msgspec.Struct, frozen=True):
    """Whose cache a record holds, and how far its events are in it."""

    pod: str
    """`namespace/name`."""
    uid: str
    address: str
    rank: int
    model: str
    lora_id: int | None
    state: str
    """The source's state when it was saved, for people."""
    sequence: int
    """Number of the last batch applied."""
    digest: bytes
    """Of that batch."""
    complete: bool
    """Every batch since the engine's start, or since it was empty, is in it."""


@dataclass(frozen=True, slots=True)
class Record:
    """Where a record's export lies."""

    head: RecordHead
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Contents:
    """A snapshot that was read from its start to its end, without the exports."""

    written_at: float
    """Seconds since the epoch."""
    max_index_bytes: int
    """The limit of the index that it comes from; 0: none."""
    records: tuple[Record, ...]


class Encoder:
    """Makes one snapshot: the head, then records, then the end. Each part is to be written once."""

    def __init__(self, written_at: float, max_index_bytes: int) -> None:
        self._hash = xxhash.xxh3_128()
        self._start = _MARK.pack(MAGIC, VERSION) + _START.pack(written_at, max_index_bytes)
        self.records = 0

    def start(self) -> bytes:
        """What comes first."""
        return self._hashed(self._start)

    def record(self, head: RecordHead, export: bytes) -> bytes:
        """One source."""
        said = msgspec.msgpack.encode(head)
        self.records += 1
        return self._hashed(b"".join((_U32.pack(len(said)), said, _U64.pack(len(export)), export)))

    def end(self) -> bytes:
        """What comes last."""
        return self._hashed(_U32.pack(0) + _U32.pack(self.records)) + self._hash.digest()

    def _hashed(self, part: bytes) -> bytes:
        self._hash.update(part)
        return part


def read(source: Callable[[int], bytes]) -> Contents:
    """Read a whole snapshot and check it; `source(n)` gives the next up to n bytes.

    Holds a mebibyte and the heads in memory. Raises SnapshotRefused.
    """
    return _Decoder(source).contents()


class _Decoder:
    """Reads one snapshot, once."""

    def __init__(self, source: Callable[[int], bytes]) -> None:
        self._source = source
        self._hash = xxhash.xxh3_128()
        self._at = 0

    def contents(self) -> Contents:
        self._check_mark()
        written_at, max_index_bytes = _START.unpack(self._take(_START.size))
        records = []
        while length := self._number(_U32):
            records.append(self._record(length))
        if self._number(_U32) != len(records):
            raise _damaged("the number of its records is wrong")
        checksum = self._hash.digest()
        if self._take(CHECKSUM_BYTES) != checksum:
            raise _damaged("its checksum is wrong")
        if self._source(1):
            raise _damaged("bytes follow its end")
        return Contents(written_at, max_index_bytes, tuple(records))

    def _check_mark(self) -> None:
        mark = self._source(_MARK.size)
        if mark[: len(MAGIC)] != MAGIC:
            raise SnapshotRefused(Refusal.FOREIGN, "it is no snapshot of an index")
        if len(mark) < _MARK.size:
            raise _damaged("it ends too early")
        version = _MARK.unpack(mark)[1]
        if version != VERSION:
            raise SnapshotRefused(
                Refusal.VERSION, f"its version is {version}, this server reads {VERSION}"
            )
        self._hash.update(mark)
        self._at = len(mark)

    def _record(self, length: int) -> Record:
        if length > MAX_HEAD_BYTES:
            raise _damaged(f"a record's head has {length} bytes")
        try:
            head = msgspec.msgpack.decode(self._take(length), type=RecordHead)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _damaged(f"a record's head cannot be read: {error}") from None
        export_bytes = self._number(_U64)
        record = Record(head, self._at, export_bytes)
        left = export_bytes
        while left:
            left -= len(self._take(min(left, _PIECE_BYTES)))
        return record

    def _number(self, layout: struct.Struct) -> int:
        return int(layout.unpack(self._take(layout.size))[0])

    def _take(self, length: int) -> bytes:
        """Exactly so many bytes, hashed."""
        part = self._source(length)
        if len(part) < length:
            raise _damaged("it ends too early")
        self._hash.update(part)
        self._at += length
        return part


def _damaged(why: str) -> SnapshotRefused:
    return SnapshotRefused(Refusal.DAMAGED, f"it is damaged: {why}")
