"""From payloads to events: versions, encodings, strict types, and what a bad part costs."""

import math

import msgspec
import pytest

from aibrix_extproc.index.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Unreadable,
    decode_batch,
)
from tests.events import batch, cleared, removed, stored

encode = msgspec.msgpack.encode
GOOD = stored([1], [1, 2, 3, 4])
VERSIONS = ["0.9", "0.10.2", "0.14", "0.17", "0.20", "0.23", "0.24", "0.33"]
each_version = pytest.mark.parametrize("version", VERSIONS)


def named(**fields: object) -> dict[str, object]:
    """A BlockStored map in which some fields are replaced."""
    event = GOOD.encoded("0.33")
    assert isinstance(event, dict)
    return event | fields


@each_version
def test_every_kind_of_event_is_read_in_order(version: str) -> None:
    events = decode_batch(batch(GOOD, removed([1]), cleared(), version=version)).events
    assert [type(e).__mro__[1] for e in events] == [BlockStored, BlockRemoved, AllBlocksCleared]
    assert isinstance(events[0], BlockStored)
    assert (events[0].block_hashes, events[0].parent_block_hash) == ([1], None)
    assert (events[0].token_ids, events[0].block_size) == ([1, 2, 3, 4], 4)


@pytest.mark.parametrize("shape", [[1.5, []], [1.5, [], 0], [1.5, [], None, "new", {"a": 1}]])
def test_a_batch_has_two_items_or_more(shape: list[object]) -> None:
    assert decode_batch(encode(shape)) == decode_batch(encode([1.5, []]))
    assert decode_batch(encode(shape)).timestamp == 1.5


@pytest.mark.parametrize("encoding", ["0.23", "0.33"])
def test_fields_of_the_future_are_ignored(encoding: str) -> None:
    event = GOOD.encoded(encoding)
    longer = event | {"new": [1]} if isinstance(event, dict) else [*event, *[None] * 8, "new"]
    short = [cleared().encoded(encoding)]
    for tail in ([], short):
        (first, *_) = decode_batch(encode([1.0, [longer, *tail], 0])).events
        assert isinstance(first, BlockStored)


def test_maps_and_arrays_may_stand_in_one_batch() -> None:
    payload = encode([1.0, [GOOD.encoded("0.33"), GOOD.encoded("0.9"), cleared().encoded("0.9")]])
    first, second, third = decode_batch(payload).events
    assert isinstance(first, BlockStored)
    assert isinstance(second, BlockStored)
    assert isinstance(third, AllBlocksCleared)


@pytest.mark.parametrize("block_hash", [0, -1, -(2**63), 2**64 - 1, b"", b"x" * 16, b"x" * 32])
def test_a_hash_is_an_int_or_bytes(block_hash: int | bytes) -> None:
    (event,) = decode_batch(batch(stored([block_hash], [1, 2, 3, 4], parent=block_hash))).events
    assert isinstance(event, BlockStored)
    assert event.block_hashes == [block_hash]
    assert event.parent_block_hash == block_hash


@pytest.mark.parametrize(
    ("ts", "seconds"),
    [
        (1.5, 1.5),
        (7, 7.0),
        (None, None),
        (True, None),
        ("now", None),
        (math.nan, None),
        (math.inf, None),
        ([1], None),
    ],
)
def test_the_time_is_a_finite_number_or_none(ts: object, seconds: float | None) -> None:
    for version in ("0.9", "0.33"):
        decoded = decode_batch(batch(GOOD, version=version, ts=ts))
        assert decoded.timestamp == seconds
        assert isinstance(decoded.events[0], BlockStored)


def test_a_time_that_cannot_be_read_costs_no_event() -> None:
    payload = b"\x92\xa1\xff" + encode([GOOD.encoded("0.33")])
    decoded = decode_batch(payload)
    assert decoded.timestamp is None
    assert isinstance(decoded.events[0], BlockStored)


DEEP = b"\x91" * 50_000 + b"\xc0"
"""Deeper than any decoder recurses."""


def with_field(name: str, value: bytes) -> bytes:
    """A BlockStored map with one more field, given as msgpack."""
    pairs = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None}
    pairs |= {"token_ids": [1, 2, 3, 4], "block_size": 4}
    body = encode(pairs)
    return bytes([body[0] + 1]) + body[1:] + encode(name) + value


BAD_STORED = {
    "tokens of bools": encode(named(token_ids=[True, 2, 3, 4])),
    "tokens of floats": encode(named(token_ids=[1.0, 2, 3, 4])),
    "pairs of tokens (SGLang under EAGLE)": encode(named(token_ids=[[1, 2], [2, 3]])),
    "tokens as a string": encode(named(token_ids="abcd")),
    "no tokens": encode(named(token_ids=None)),
    "a hash of text": encode(named(block_hashes=["1"])),
    "a bool as a hash": encode(named(block_hashes=[True])),
    "a float as a hash": encode(named(block_hashes=[1.0])),
    "a hash of 65 bytes": encode(named(block_hashes=[b"x" * 65])),
    "a parent of text": encode(named(parent_block_hash="1")),
    "hashes that are no list": encode(named(block_hashes=1)),
    "a block size of true": encode(named(block_size=True)),
    "an adapter that is no text": encode(named(lora_name=5)),
    "an adapter that is no UTF-8": with_field("lora_name", b"\xa1\xff"),
    "an adapter's id of text": encode(named(lora_id="1")),
    "a medium that is no text": encode(named(medium=1)),
    "a medium of 65 characters": encode(named(medium="x" * 65)),
    "extra keys that are no lists": encode(named(extra_keys=["salt"])),
    "extra keys nested too deep": with_field("extra_keys", b"\x91" + DEEP),
    "an unknown field nested too deep": with_field("new", DEEP),
    "a group of text": encode(named(group_idx="0")),
    "lookahead of text": encode(named(lookahead_token_ids=["5"])),
    "a name that is no text": encode(named() | {5: 1}),
    "no fields": encode({"type": "BlockStored"}),
    "an array too short": encode(["BlockStored", [1], None, [1, 2, 3, 4]]),
}


@pytest.mark.parametrize("bad", BAD_STORED.values(), ids=BAD_STORED.keys())
@pytest.mark.parametrize("encoding", ["0.23", "0.33"])
def test_an_unreadable_stored_event_costs_itself_alone(bad: bytes, encoding: str) -> None:
    good, last = encode(GOOD.encoded(encoding)), encode(removed([1]).encoded(encoding))
    decoded = decode_batch(b"\x92\xcb" + bytes(8) + b"\x93" + good + bad + last)
    first, middle, third = decoded.events
    assert isinstance(first, BlockStored)
    assert middle == Unreadable("unreadable_stored")
    assert isinstance(third, BlockRemoved)


BAD_OTHERS = {
    "a removal of text": (["BlockRemoved", ["1"]], "unreadable_removed"),
    "a removal without hashes": ({"type": "BlockRemoved"}, "unreadable_removed"),
    "a removal of a bool": ({"type": "BlockRemoved", "block_hashes": [True]}, "unreadable_removed"),
    "a removal on medium 5": (["BlockRemoved", [1], 5], "unreadable_removed"),
    "a clear with a nameless field": ({"type": "AllBlocksCleared", 5: 1}, "unreadable_cleared"),
    "an unknown tag": (["BlockMoved", [1]], "unknown_event"),
    "an unknown tag in a map": ({"type": "BlockMoved"}, "unknown_event"),
    "an empty array": ([], "unreadable_event"),
    "an empty map": ({}, "unreadable_event"),
    "a tag that is no text": ([1, [1]], "unreadable_event"),
    "nil": (None, "unreadable_event"),
    "a number": (5, "unreadable_event"),
    "text": ("AllBlocksCleared", "unreadable_event"),
    "an extension": (msgspec.msgpack.Ext(5, b"x"), "unreadable_event"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD_OTHERS.values(), ids=BAD_OTHERS.keys())
def test_what_else_cannot_be_read_has_its_own_reason(bad: object, reason: str) -> None:
    first, middle, last = decode_batch(batch(GOOD, bad, cleared())).events
    assert isinstance(first, BlockStored)
    assert middle == Unreadable(reason)
    assert isinstance(last, AllBlocksCleared)


BAD_PAYLOADS = {
    "nothing": b"",
    "a truncated batch": batch(GOOD)[:-3],
    "bytes after the batch": batch(GOOD) + b"\xc0",
    "two batches": batch(GOOD) * 2,
    "no array": encode({"ts": 1.0, "events": []}),
    "one item": encode([1.0]),
    "events that are no array": encode([1.0, {}]),
    "a byte that means nothing": b"\x92\x01\x91\xc1",
    "a list of four billion": b"\x92\x01\xdd\xff\xff\xff\xff",
    "a batch of four billion": b"\xdd\xff\xff\xff\xff\x01\x90",
    "text": b"hello",
}


@pytest.mark.parametrize("payload", BAD_PAYLOADS.values(), ids=BAD_PAYLOADS.keys())
def test_a_payload_without_boundaries_is_one_unreadable(payload: bytes) -> None:
    decoded = decode_batch(payload)
    assert list(decoded.events) == [Unreadable("payload")]
    assert decoded.timestamp is None


def test_of_two_equal_names_the_last_counts() -> None:
    (event,) = decode_batch(b"\x92\x01\x91" + with_field("block_hashes", encode([9]))).events
    assert isinstance(event, BlockStored)
    assert event.block_hashes == [9]


def test_an_event_of_two_kinds_may_be_a_removal() -> None:
    event = with_field("type", encode("BlockRemoved"))
    assert decode_batch(b"\x92\x01\x91" + event).events == [Unreadable("unreadable_event")]


def test_reading_event_by_event_gives_what_reading_the_whole_does() -> None:
    """One bad event sends the whole batch the slow way; its neighbours come out the same."""
    for version in VERSIONS:
        events = [GOOD, removed([1, b"x"]), stored([2, 3], range(8), parent=1), cleared()]
        fast = decode_batch(batch(*events, version=version))
        slow = decode_batch(batch(*events, ["Unknown"], version=version))
        assert list(slow.events[:-1]) == list(fast.events)
        assert slow.timestamp == fast.timestamp
