"""Where the parts of a batch end, for batches that do not decode as a whole."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.index.boundaries import NoBoundary, split_batch, tag_of

encode = msgspec.msgpack.encode

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=300)
    | st.builds(msgspec.msgpack.Ext, st.integers(0, 127), st.binary(max_size=20)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=30,
)


@given(VALUES, st.lists(VALUES, max_size=20), st.lists(VALUES, max_size=3))
def test_the_parts_are_those_that_were_put_in(
    ts: object, events: list[object], more: list[object]
) -> None:
    parts = split_batch(encode([ts, events, *more]))
    assert parts == (encode(ts), [encode(event) for event in events])


@given(VALUES, st.lists(VALUES, max_size=3), st.data())
def test_a_part_of_a_batch_has_no_boundaries(
    ts: object, events: list[object], data: st.DataObject
) -> None:
    payload = encode([ts, events])
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(NoBoundary):
        split_batch(payload[:cut])


@pytest.mark.parametrize("rest", [b"\xc0", b"\x00", b"\x92\x01\x90"])
def test_bytes_after_the_batch_are_no_batch(rest: bytes) -> None:
    with pytest.raises(NoBoundary, match="follow"):
        split_batch(encode([1.0, []]) + rest)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", encode({}), encode([]), encode([1.0]), encode([1.0, {}]), encode("text")],
)
def test_what_is_no_array_of_time_and_events_is_no_batch(payload: bytes) -> None:
    with pytest.raises(NoBoundary):
        split_batch(payload)


@given(st.binary(max_size=200))
def test_any_bytes_have_boundaries_or_none(payload: bytes) -> None:
    try:
        ts, events = split_batch(payload)
    except NoBoundary:
        return
    assert b"".join([ts, *events]) in payload


@pytest.mark.parametrize(
    "header", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdc\xff\xff"]
)
def test_a_header_that_promises_more_than_there_is_ends_the_walk(header: bytes) -> None:
    with pytest.raises(NoBoundary):
        split_batch(b"\x92\x01" + header + b"\x01" * 1000)


@pytest.mark.parametrize(
    "opening", [b"\x91", b"\x81\x01", b"\xdc\x00\x01", b"\xdf\x00\x00\x00\x01\x01"]
)
def test_nesting_may_be_as_deep_as_it_likes(opening: bytes) -> None:
    deep = opening * 100_000 + b"\xc0"
    assert split_batch(b"\x92\x01\x92" + deep + b"\x05")[1] == [deep, b"\x05"]


@pytest.mark.parametrize(
    ("event", "tag"),
    [
        (["BlockStored", 1], "BlockStored"),
        (["x" * 100], "x" * 100),
        ({"a": 1, "type": "BlockRemoved"}, "BlockRemoved"),
        ({"type": None}, None),
        ({"type": b"BlockRemoved"}, None),
        ({"a": "type"}, None),
        ([], None),
        ([1, "BlockStored"], None),
        ("BlockStored", None),
        (None, None),
        (7, None),
    ],
)
def test_the_tag_is_read_alone(event: object, tag: str | None) -> None:
    assert tag_of(encode(event)) == tag


def test_a_map_that_names_two_kinds_names_none() -> None:
    pair = [encode("type") + encode(kind) for kind in ("BlockStored", "BlockRemoved")]
    assert tag_of(b"\x82" + pair[0] + pair[1]) is None
    assert tag_of(b"\x82" + pair[0] + pair[0]) == "BlockStored"


def test_a_tag_that_is_no_utf8_is_none() -> None:
    assert tag_of(b"\x91\xa1\xff") is None
