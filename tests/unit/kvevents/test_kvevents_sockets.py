"""Links: what they leave behind, whatever happens to them."""

import threading
from collections.abc import Iterator

import pytest
import zmq

from aibrix_extproc.kvevents.sockets import Context, Link, LinkOptions, Switchboard, new_context

ENDPOINT = "tcp://127.0.0.1:9"
OPTIONS = LinkOptions(heartbeat_s=1.0, max_message_bytes=1_000_000)


@pytest.fixture
def context() -> Iterator[Context]:
    context = new_context()
    yield context
    context.destroy(0)


def link(context: Context, endpoint: str = ENDPOINT) -> Link:
    return Link(context, zmq.SUB, endpoint, Switchboard(), lambda now: None, OPTIONS)


def ends(context: Context) -> bool:
    """Whether the context can end: it waits for every socket that is still open."""
    thread = threading.Thread(target=context.term, daemon=True)
    thread.start()
    thread.join(5)
    return not thread.is_alive()


def test_a_closed_link_leaves_no_socket(context: Context) -> None:
    link(context).close()
    assert ends(context)


def test_a_link_may_be_closed_twice(context: Context) -> None:
    closed = link(context)
    closed.close()
    closed.close()
    assert ends(context)


def test_a_link_to_an_endpoint_that_is_none_leaves_no_socket(context: Context) -> None:
    with pytest.raises(zmq.ZMQError) as caught:
        link(context, "tcp://nowhere")
    assert caught.tb is not None  # it keeps the link from being collected
    assert ends(context)


def test_a_link_without_a_monitor_for_want_of_sockets_leaves_none(context: Context) -> None:
    context.set(zmq.MAX_SOCKETS, 2)  # its own, and one end of the monitor
    with pytest.raises(zmq.ZMQError) as caught:
        link(context)
    assert caught.tb is not None
    assert ends(context)
