"""Server-sent events come whole, wherever the bytes are cut."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.loadtest.sse import EventStream

STREAM = (
    b': comment\ndata: {"a": 1}\n\ndata: two\ndata: lines\n\nevent: x\ndata:no space\r\n\r\n'
    b"\n\ndata: \xc3\xa9\n\ndata: [DONE]\n\ndata: unfinished"
)
EVENTS = [b'{"a": 1}', b"two\nlines", b"no space", "é".encode(), b"[DONE]"]


def test_the_data_of_each_event_comes_out() -> None:
    assert EventStream().feed(STREAM) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_the_cuts_do_not_matter(cuts: list[int]) -> None:
    events = EventStream()
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(edges)]
    assert [data for piece in pieces for data in events.feed(piece)] == EVENTS
