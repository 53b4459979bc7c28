"""Replies that the compiled core reads: the same ids as in Python, or none at all."""

import json
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.tokenizer import native, request
from tests.backends import needs_core

pytestmark = needs_core

ATOMS = st.none() | st.booleans() | st.integers(-1, 2**33) | st.floats() | st.text(max_size=3)
LISTS = st.lists(st.integers(0, 2**32 - 1), max_size=5) | st.lists(ATOMS, max_size=3) | ATOMS
NAMES = st.sampled_from(["tokens", "token_ids", "max_model_len", "count", "token_strs", "x"])
OBJECTS = st.dictionaries(NAMES, LISTS | st.dictionaries(NAMES, LISTS, max_size=2), max_size=5)


def test_usual_replies_are_read() -> None:
    reply = b'{"count":3,"max_model_len":4096,"tokens":[1,2,4294967295],"token_strs":null}'
    assert native.tokenized(reply) == (array("I", [1, 2, 2**32 - 1]), 4096)
    rendered = b'{"request_id":"r","token_ids":[7, 8],"sampling_params":{"stop":[]}}'
    assert native.rendered(rendered, is_list=False) == array("I", [7, 8])
    assert native.rendered(b"[%b,%b]" % (rendered, rendered), is_list=True) == array("I", [7, 8])
    assert native.tokenized(b'{"tokens":[]}') == (array("I"), 0)


def test_of_two_equal_names_the_last_counts() -> None:
    assert native.tokenized(b'{"tokens":[1],"tokens":[2]}') == (array("I", [2]), 0)


@pytest.mark.parametrize(
    "reply",
    [
        b"", b"[]", b"{}", b"[[1],2]", b'{"tokens":[1', b'{"tokens":[1]} x', b'{"tokens":[-1]}',
        b'{"tokens":[4294967296]}', b'{"tokens":[1.5]}', b'{"tokens":[true]}', b'{"tokens":"1"}',
        b'{"tokens":[1],"max_model_len":null}', b"[" * 10_000, b'{"x":' * 10_000, b"\xff",
    ],
)  # fmt: skip
def test_anything_else_is_left_to_python(reply: bytes) -> None:
    assert native.tokenized(reply) is None
    assert native.rendered(reply, is_list=False) is None
    assert native.rendered(reply, is_list=True) is None


def in_python(decode: Any, reply: bytes) -> Any:
    try:
        return decode(reply)
    except ValueError:
        return None


@given(OBJECTS)
def test_what_is_read_is_what_python_reads(fields: dict[str, Any]) -> None:
    reply = json.dumps(fields).encode()
    fast, slow = native.tokenized(reply), in_python(request._tokenized_of, reply)
    if fast is not None:
        assert (fast[0].tolist(), fast[1]) == (slow.tokens, slow.max_model_len)
    ids, slow = native.rendered(reply, is_list=False), in_python(request._rendered_of, reply)
    if ids is not None:
        assert ids.tolist() == slow.token_ids


def test_token_ids_are_a_buffer_with_slices() -> None:
    from aibrix_extproc import _core  # noqa: PLC0415

    read = _core.read_tokenized(b'{"tokens":[10,11,12,13]}')
    assert read is not None
    ids = read[0]
    view = memoryview(ids)
    assert (view.format, view.itemsize, view.readonly) == ("I", 4, True)
    assert (len(ids), list(ids), ids[-1]) == (4, [10, 11, 12, 13], 13)
    assert list(ids[1:3]) == [11, 12]
    assert memoryview(ids[1:3]).tolist() == [11, 12]
    assert list(ids[::-2]) == [13, 11]
    assert ids[1:][1:] == ids[2:]
    with pytest.raises(IndexError):
        ids[4]
    del ids, read
    assert view.tolist() == [10, 11, 12, 13], "the buffer keeps them"
