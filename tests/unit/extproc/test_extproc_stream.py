"""The stream's logic, message by message, where Envoy keeps the body (BUFFERED), and what is
the same in every mode: headers-only requests, answers, spoofed headers, the ledger."""

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from aibrix_extproc.errors import ModelNotFound
from aibrix_extproc.extproc.decides import Answered, Passed, RouteRequest
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.routing.types import Candidate
from tests.unit.extproc.extproc_fixtures import (
    BUFFERED,
    CHAT,
    DUPLEX,
    NONE,
    common,
    picked,
    pod,
    request_body,
    request_headers,
    request_trailers,
    response_headers,
    set_headers,
    three_pods,
)
from tests.unit.extproc.extproc_stream_rig import (
    SPOOFED,
    asked,
    decided,
    make,
    one_reply,
    replies,
    settled,
    strips,
    up_to_decision,
)

# -- a request with a body ------------------------------------------------------------------


def test_the_headers_are_answered_at_once_and_only_strip() -> None:
    reply = one_reply(make().receive(request_headers()))
    assert reply.WhichOneof("response") == "request_headers"
    assert strips(common(reply))
    assert common(reply).status == pb.CommonResponse.CONTINUE
    assert not common(reply).clear_route_cache


def test_the_body_is_decided_as_the_client_sent_it() -> None:
    request = up_to_decision(make(), b'{"model": "llama",  "x": 1}', path=f"{CHAT}?a=1")
    assert request == RouteRequest(
        method="POST",
        path=f"{CHAT}?a=1",
        headers={},
        body=b'{"model": "llama",  "x": 1}',
        request_id="req-1",
    )


@pytest.mark.parametrize("raw", [True, False])
def test_headers_are_read_from_raw_value_and_from_value(raw: bool) -> None:
    request = up_to_decision(make(), raw=raw, routing_strategy="random", external_filter="a=b")
    assert request.path == CHAT
    assert request.headers == {"routing-strategy": "random", "external-filter": "a=b"}


def test_raw_value_goes_before_value() -> None:
    message = request_headers()
    for header in message.request_headers.headers.headers:
        header.value = "wrong"
    stream = make()
    stream.receive(message)
    assert asked(stream.receive(request_body(b"{}"))).path == CHAT


def test_of_a_repeated_header_the_first_counts() -> None:
    message = request_headers(routing_strategy="first")
    message.request_headers.headers.headers.add(key="routing-strategy", raw_value=b"second")
    stream = make()
    stream.receive(message)
    assert asked(stream.receive(request_body(b"{}"))).headers == {"routing-strategy": "first"}


def test_preferences_are_not_read_where_clients_are_not_trusted() -> None:
    request = up_to_decision(make(trust_client_headers=False), routing_strategy="random")
    assert request.headers == {}


def test_a_pick_names_the_pod_in_headers_and_in_metadata() -> None:
    _, effects = decided(three_pods())
    reply = one_reply(effects)
    assert reply.WhichOneof("response") == "request_body"
    mutation = common(reply).header_mutation
    assert set_headers(mutation) == {
        "target-pod": "10.0.0.1:8000",
        "x-gateway-destination-endpoint": "10.0.0.1:8000,10.0.0.2:8000,10.0.0.3:8000",
        "routing-strategy": "prefix-cache",
        "x-request-id": "req-1",
    }
    assert list(mutation.remove_headers) == ["x-data-parallel-rank"]
    assert MessageToDict(reply.dynamic_metadata) == {
        "envoy.lb": {"x-gateway-destination-endpoint": "10.0.0.1:8000,10.0.0.2:8000,10.0.0.3:8000"}
    }
    assert common(reply).clear_route_cache
    assert not common(reply).HasField("body_mutation")
    assert settled(effects) == [("picked", "")]


def test_as_many_alternatives_as_the_setting_says() -> None:
    _, effects = decided(three_pods(), alternatives=1)
    values = set_headers(common(one_reply(effects)).header_mutation)
    assert values["x-gateway-destination-endpoint"] == values["target-pod"] == "10.0.0.1:8000"


def test_alternatives_are_distinct_pods_and_the_rank_is_named() -> None:
    both = pod("a", "10.0.0.1:8000", ranks=2)
    other = pod("b", "10.0.0.2:8000")
    outcome = picked(Candidate(1, both, 1), Candidate(2, both, 0), Candidate(3, other))
    _, effects = decided(outcome)
    mutation = common(one_reply(effects)).header_mutation
    values = set_headers(mutation)
    assert values["x-data-parallel-rank"] == "1"
    assert values["x-gateway-destination-endpoint"] == "10.0.0.1:8000,10.0.0.2:8000"
    assert not mutation.remove_headers


@pytest.mark.parametrize("unusable", ["", "a\r\nb: c", "ä", "x" * 129])
def test_an_unusable_request_id_is_replaced(unusable: str) -> None:
    stream = make()
    message = request_headers()
    for header in message.request_headers.headers.headers:
        if header.key == "x-request-id":
            header.raw_value = unusable.encode()
    stream.receive(message)
    assert asked(stream.receive(request_body(b"{}"))).request_id == "new-id"
    values = set_headers(common(one_reply(stream.decided(three_pods()))).header_mutation)
    assert values["x-request-id"] == "new-id"


def test_a_pass_strips_and_picks_nothing() -> None:
    _, effects = decided(Passed("not_listed"))
    reply = one_reply(effects)
    assert reply.WhichOneof("response") == "request_body"
    assert strips(common(reply))
    assert not common(reply).clear_route_cache
    assert not reply.HasField("dynamic_metadata")
    assert settled(effects) == [("passed", "not_listed")]


def test_a_refusal_is_an_immediate_response_and_ends_the_stream() -> None:
    stream = make()
    up_to_decision(stream)
    effects = stream.refused(ModelNotFound("nope"))
    immediate = one_reply(effects).immediate_response
    assert immediate.status.code == 404
    assert settled(effects) == [("refused", "")]
    assert stream.receive(response_headers()) == []
    assert stream.may_end


def test_an_answer_of_this_server_is_an_immediate_response() -> None:
    stream = make()
    request = asked(stream.receive(request_headers(path="/v1/models?x=1", method="GET", end=True)))
    assert (request.method, request.path, request.body) == ("GET", "/v1/models?x=1", b"")
    effects = stream.decided(Answered(200, b"[]", "application/json"))
    immediate = one_reply(effects).immediate_response
    assert (immediate.status.code, immediate.body) == (200, b"[]")
    assert set_headers(immediate.headers) == {
        "content-type": "application/json",
        "request-id": "req-1",
    }
    assert settled(effects) == [("answered", "")]


def test_trailers_after_the_body_make_it_whole_and_are_answered() -> None:
    stream = make()
    stream.receive(request_headers())
    asked(stream.receive(request_body(b"{}", end=False)))
    assert stream.receive(request_trailers()) == []
    kinds = [r.WhichOneof("response") for r in replies(stream.decided(three_pods()))]
    assert kinds == ["request_body", "request_trailers"]


def test_trailers_right_after_the_headers_pass() -> None:
    stream = make()
    stream.receive(request_headers())
    effects = stream.receive(request_trailers())
    assert one_reply(effects).WhichOneof("response") == "request_trailers"
    assert settled(effects) == [("passed", "no_body")]


# -- what is not decided ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        {"method": "GET", "path": "/health", "end": True},
        {"method": "GET", "path": "/v1/models/llama", "end": True},
        {"method": "GET", "path": CHAT, "end": True},
        {"method": "OPTIONS", "path": CHAT, "end": True},
        {"path": "/tokenize"},
        {"path": "/v1/embeddings", "end": True},
        {"path": "/v1/audio/transcriptions", "content_type": "multipart/form-data; boundary=a"},
        {"path": "/v1/embeddings", "content_type": "text/plain"},
    ],
)
@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX, NONE])
def test_it_passes_untouched_without_waiting(head: dict[str, Any], mode: int) -> None:
    effects = make().receive(request_headers(mode=mode, **SPOOFED, **head))
    assert strips(common(one_reply(effects)))
    assert settled(effects) == [("passed", "untouched")]


@pytest.mark.parametrize(
    "head",
    [
        {"path": "/v1/completions"},
        {"path": CHAT, "content_type": ""},
        {"path": CHAT, "content_type": "text/plain"},
        {"path": f"{CHAT}?beta=true"},
        {"path": "/v1/embeddings"},
        {"path": "/v1/embeddings", "content_type": ""},
        {"path": "/v1/rerank", "content_type": "application/json; charset=utf-8"},
        {"path": "/v1/rerank", "content_type": "application/vnd.x+json"},
    ],
)
def test_it_is_decided(head: dict[str, Any]) -> None:
    assert up_to_decision(make(), **head).body == b"{}"


def test_a_completion_without_a_body_is_decided_at_its_headers() -> None:
    stream = make()
    assert asked(stream.receive(request_headers(end=True))).body == b""
    reply = one_reply(stream.decided(three_pods()))
    assert reply.WhichOneof("response") == "request_headers"
    assert common(reply).clear_route_cache


def test_a_body_that_passes_is_answered_and_stripped_again() -> None:
    stream = make()
    stream.receive(request_headers(path="/upload", **SPOOFED))
    effects = stream.receive(request_body(b"x" * 100))
    assert strips(common(one_reply(effects)))
    assert settled(effects) == []


def test_without_request_headers_every_message_is_let_through() -> None:
    stream = make()
    first = request_body(b"{}")
    first.protocol_config.request_body_mode = BUFFERED
    effects = stream.receive(first)
    assert one_reply(effects).WhichOneof("response") == "request_body"
    assert settled(effects) == [("passed", "no_headers")]
    assert one_reply(stream.receive(response_headers())).HasField("response_headers")


def test_messages_without_content_are_skipped() -> None:
    stream = make()
    assert stream.receive(pb.ProcessingRequest()) == []
    assert one_reply(stream.receive(request_headers())).HasField("request_headers")


def test_a_second_head_is_tolerated() -> None:
    stream = make()
    stream.receive(request_headers())
    assert strips(common(one_reply(stream.receive(request_headers()))))


# -- the subset hint --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "subset"),
    [
        (None, None),
        (["10.0.0.1:8000", " 10.0.0.2:8000 "], {"10.0.0.1:8000", "10.0.0.2:8000"}),
        ("10.0.0.1:8000, 10.0.0.2:8000", {"10.0.0.1:8000", "10.0.0.2:8000"}),
        ([], set()),
        ("", set()),
    ],
)
def test_a_subset_hint_restricts_the_candidates(hint: Any, subset: set[str] | None) -> None:
    assert up_to_decision(make(), subset=hint).subset == subset


# -- what is recorded -------------------------------------------------------------------------


TRACE = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        (TRACE, TRACE),
        (None, None),
        (TRACE.upper(), None),
        (TRACE + "-more", None),
        (TRACE + "\n", None),
        ("x" * 100_000, None),
    ],
    ids=["good", "none", "upper case", "longer", "line end", "huge"],
)
def test_a_traceparent_goes_into_the_record_where_it_is_one(
    given: str | None, recorded: str | None
) -> None:
    stream = make()
    headers = {} if given is None else {"traceparent": given}
    stream.receive(request_headers(**headers))
    assert asked(stream.receive(request_body(b"{}"))).traceparent == recorded


# -- values that come from outside ------------------------------------------------------------


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX], ids=["buffered", "duplex"])
def test_no_value_that_comes_from_outside_ends_a_line_in_a_header(mode: Any) -> None:
    """Discovery refuses such pods; were one to come through, headers would still be whole."""
    evil = "a\r\nx-evil: 1\0\x7fé" + "b" * 5_000
    stream = make(debug_headers=True)
    stream.receive(request_headers(mode=mode, x_request_id=evil))
    stream.receive(request_body(b"{}"))
    chosen = Candidate(1, pod(evil, evil, ranks=4), rank=3)
    effects = stream.decided(picked(chosen))
    sent = set_headers(common(replies(effects)[0]).header_mutation)
    told = set_headers(
        replies(stream.receive(response_headers()))[0].response_headers.response.header_mutation
    )
    metadata = MessageToDict(replies(effects)[0].dynamic_metadata)
    endpoint = metadata["envoy.lb"]["x-gateway-destination-endpoint"]
    for value in (*sent.values(), *told.values(), endpoint):
        assert value.isascii()
        assert value.isprintable()
        assert len(value) <= 1_024
    assert sent["x-request-id"] == "new-id"
