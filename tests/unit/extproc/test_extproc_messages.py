"""Replies that are built once and copied: nothing of one request shows in another's."""

from aibrix_extproc.extproc import messages
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.unit.extproc.extproc_fixtures import set_headers, three_pods


def reply(picks: messages.Picks, request_id: str, *, to_body: bool = True) -> pb.ProcessingResponse:
    return picks.reply(three_pods(), "10.0.0.1:8000,10.0.0.2:8000", request_id, to_body=to_body)


def test_each_request_gets_its_own_id_with_the_same_pick() -> None:
    picks = messages.Picks()
    replies = [reply(picks, request_id) for request_id in ("first", "second", "third")]
    seen = [set_headers(r.request_body.response.header_mutation) for r in replies]
    assert [headers["x-request-id"] for headers in seen] == ["first", "second", "third"]
    assert {headers["target-pod"] for headers in seen} == {"10.0.0.1:8000"}
    assert all(len(r.request_body.response.header_mutation.set_headers) == 4 for r in replies)


def test_a_reply_that_is_changed_does_not_change_the_next() -> None:
    picks = messages.Picks()
    reply(picks, "first").request_body.response.header_mutation.Clear()
    again = set_headers(reply(picks, "second").request_body.response.header_mutation)
    assert again["x-gateway-destination-endpoint"] == "10.0.0.1:8000,10.0.0.2:8000"


def test_one_pick_is_the_reply_to_the_headers_or_to_the_body() -> None:
    picks = messages.Picks()
    to_body, to_headers = reply(picks, "a"), reply(picks, "a", to_body=False)
    assert to_body.WhichOneof("response") == "request_body"
    assert to_headers.WhichOneof("response") == "request_headers"
    assert to_headers.request_headers.response == to_body.request_body.response
    assert to_headers.dynamic_metadata == to_body.dynamic_metadata


def test_what_is_kept_of_replies_is_bounded() -> None:
    picks = messages.Picks()
    for number in range(3 * messages._PICKS_BUILT):
        picks.reply(three_pods(), f"10.0.0.1:{number}", "id", to_body=True)
    assert len(picks._built) <= messages._PICKS_BUILT
