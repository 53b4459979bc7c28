"""The layout of a snapshot: what is written is read again, all else is refused with a reason."""

import contextlib
import io
import random
import struct

import msgspec
import pytest
import xxhash

from aibrix_extproc.snapshot.format import (
    Contents,
    Encoder,
    RecordHead,
    Refusal,
    SnapshotRefused,
    read,
)

NO_RECORDS = struct.pack("<II", 0, 0)


def head(rank: int = 0) -> RecordHead:
    return RecordHead(
        pod="default/a",
        uid="uid-1",
        address="10.0.0.1:8000",
        rank=rank,
        model="m",
        lora_id=None,
        state="EXACT",
        sequence=41,
        digest=b"d" * 16,
        complete=True,
    )


def snapshot(*exports: bytes) -> bytes:
    encoder = Encoder(written_at=1000.5, max_index_bytes=64)
    records = [encoder.record(head(rank), export) for rank, export in enumerate(exports)]
    # Records are hashed in the order in which they are made, after the start.
    encoder = Encoder(written_at=1000.5, max_index_bytes=64)
    parts = [encoder.start()]
    parts += [encoder.record(head(rank), export) for rank, export in enumerate(exports)]
    assert parts[1:] == records
    return b"".join([*parts, encoder.end()])


def contents(data: bytes) -> Contents:
    return read(io.BytesIO(data).read)


def sealed(body: bytes) -> bytes:
    return body + xxhash.xxh3_128_digest(body)


def test_what_is_written_is_read_again() -> None:
    data = snapshot(b"one", b"", b"x" * 3_000_000)
    found = contents(data)
    assert (found.written_at, found.max_index_bytes) == (1000.5, 64)
    assert [record.head for record in found.records] == [head(0), head(1), head(2)]
    exports = [data[r.offset : r.offset + r.length] for r in found.records]
    assert exports == [b"one", b"", b"x" * 3_000_000]


def test_one_without_sources_is_one() -> None:
    assert contents(snapshot()).records == ()


def test_a_field_of_a_later_release_is_passed_over() -> None:
    start = snapshot()[: -len(NO_RECORDS) - 16]
    said = msgspec.msgpack.encode(msgspec.structs.asdict(head()) | {"colour": "blue"})
    record = struct.pack("<I", len(said)) + said + struct.pack("<Q", 3) + b"abc"
    (found,) = contents(sealed(start + record + struct.pack("<II", 0, 1))).records
    assert found.head == head()


START = struct.pack("<8sIdQ", b"AIBKVSNP", 1, 0.0, 0)
HOSTILE: dict[str, tuple[bytes, Refusal, str]] = {
    "nothing": (b"", Refusal.FOREIGN, "no snapshot"),
    "something else": (b"PK\3\4" * 20, Refusal.FOREIGN, "no snapshot"),
    "the mark alone": (b"AIBKVSNP", Refusal.DAMAGED, "too early"),
    "an older version": (struct.pack("<8sI", b"AIBKVSNP", 0), Refusal.VERSION, "version is 0"),
    "a later version": (struct.pack("<8sI", b"AIBKVSNP", 2), Refusal.VERSION, "version is 2"),
    "a head of 4 GiB": (START + b"\xff" * 4, Refusal.DAMAGED, "4294967295 bytes"),
    "a head that is no map": (
        START + struct.pack("<I", 1) + b"\x01" + bytes(8),
        Refusal.DAMAGED,
        "head",
    ),
    "an export of 2^64 bytes": (
        START
        + struct.pack("<I", len(msgspec.msgpack.encode(head())))
        + msgspec.msgpack.encode(head())
        + b"\xff" * 8
        + b"abc",
        Refusal.DAMAGED,
        "too early",
    ),
    "a record too few": (sealed(START + struct.pack("<II", 0, 1)), Refusal.DAMAGED, "number"),
    "a wrong checksum": (snapshot(b"a")[:-1] + b"\xff", Refusal.DAMAGED, "checksum"),
    "one cut off": (snapshot(b"abc" * 100)[:-40], Refusal.DAMAGED, "too early"),
    "one and more": (snapshot(b"a") + b"\0", Refusal.DAMAGED, "bytes follow"),
}


@pytest.mark.parametrize(("data", "reason", "why"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_snapshot_is_refused_with_a_reason(
    data: bytes, reason: Refusal, why: str
) -> None:
    with pytest.raises(SnapshotRefused, match=why) as refused:
        contents(data)
    assert refused.value.reason is reason


def test_every_single_change_is_found() -> None:
    data = snapshot(b"one", b"two")
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x10
        with pytest.raises(SnapshotRefused):
            contents(bytes(changed))


def test_every_cut_is_found() -> None:
    data = snapshot(b"one", b"two")
    for length in range(len(data)):
        with pytest.raises(SnapshotRefused):
            contents(data[:length])


def test_nonsense_under_a_right_checksum_is_refused_or_read() -> None:
    rng = random.Random(5)
    body = snapshot(b"one", b"two")[:-16]
    bytes_of_note = [0, 1, 0x7F, 0x80, 0xFF]
    for _ in range(2000):
        changed = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.choice(bytes_of_note)
        with contextlib.suppress(SnapshotRefused):
            contents(sealed(bytes(changed)))
