"""A stream after its outcome: the answer, the ledger, the end, shadow mode."""

from typing import Any

import pytest
from msgspec.structs import replace

from aibrix_extproc.errors import ModelNotFound
from aibrix_extproc.extproc.effects import Abort, PrefillDone, Release, Settled
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.unit.extproc.extproc_fixtures import (
    BUFFERED,
    DESTINATIONS,
    DUPLEX,
    common,
    request_body,
    request_headers,
    response_body,
    response_headers,
    response_trailers,
    set_headers,
    three_pods,
)
from tests.unit.extproc.extproc_stream_rig import (
    SPOOFED,
    decided,
    make,
    one_reply,
    replies,
    settled,
    strips,
    up_to_decision,
)

# -- the answer and the ledger ----------------------------------------------------------------


def test_response_headers_tell_the_request_id_and_end_the_prefill() -> None:
    stream, _ = decided(three_pods(ticket="t"))
    effects = stream.receive(response_headers())
    assert PrefillDone("t") in effects
    reply = one_reply(effects)
    assert reply.WhichOneof("response") == "response_headers"
    assert set_headers(common(reply).header_mutation) == {"request-id": "req-1"}


def test_debug_headers_tell_strategy_pod_and_matched_tokens() -> None:
    stream, _ = decided(three_pods(), debug_headers=True)
    reply = one_reply(stream.receive(response_headers()))
    assert set_headers(common(reply).header_mutation) == {
        "request-id": "req-1",
        "routing-strategy": "prefix-cache",
        "target-pod": "pod-1",
        "x-aibrix-matched-tokens": "32",
    }


def test_response_body_and_trailers_are_let_through() -> None:
    stream, _ = decided(three_pods())
    stream.receive(response_headers())
    body = one_reply(stream.receive(response_body(b"data")))
    assert body.WhichOneof("response") == "response_body"
    assert not common(body).HasField("body_mutation")
    trailers = one_reply(stream.receive(response_trailers()))
    assert trailers.WhichOneof("response") == "response_trailers"


@pytest.mark.parametrize(
    "last", [response_trailers(), response_body(b"x", end=True), response_headers(end=True)]
)
def test_an_answer_that_is_seen_to_end_is_released_once(last: pb.ProcessingRequest) -> None:
    stream, _ = decided(three_pods(ticket="t"))
    assert Release("t") in stream.receive(last)
    assert Release("t") not in stream.receive(response_trailers())
    assert Release("t") not in stream.closed()


def test_the_end_of_a_buffered_stream_releases() -> None:
    stream, _ = decided(three_pods(ticket="t"))
    stream.receive(response_headers())
    assert stream.closed() == [Release("t")]


def test_a_decision_that_comes_after_the_end_is_released() -> None:
    stream = make()
    up_to_decision(stream)
    assert settled(stream.closed()) == [("left", "")]
    assert stream.decided(three_pods(ticket="t")) == [Release("t")]
    assert stream.refused(ModelNotFound("m")) == []


@pytest.mark.parametrize("body_came", [True, False])
def test_an_answer_of_envoys_own_ends_the_decision(body_came: bool) -> None:
    stream = make()
    stream.receive(request_headers())
    if body_came:
        stream.receive(request_body(b"{}"))
    assert one_reply(stream.receive(response_headers("413"))).HasField("response_headers")
    assert stream.decided(three_pods(ticket="t")) == [Release("t")]
    assert stream.may_end


# -- ends -------------------------------------------------------------------------------------


def test_a_buffered_stream_may_end_once_its_outcome_is_sent() -> None:
    stream = make()
    assert not stream.may_end
    stream.receive(request_headers())
    assert not stream.may_end
    stream.receive(request_body(b"{}"))
    assert not stream.may_end
    stream.decided(three_pods())
    assert stream.may_end


def test_its_own_failure_lets_a_buffered_request_pass() -> None:
    stream = make()
    up_to_decision(stream)
    effects = stream.failed("request_body")
    assert strips(common(one_reply(effects)))
    assert settled(effects) == [("passed", "internal_error")]
    assert one_reply(stream.receive(response_headers())).HasField("response_headers")


def test_its_own_failure_ends_a_duplex_stream_with_an_error() -> None:
    stream = make()
    stream.receive(request_headers(mode=DUPLEX))
    effects = stream.failed("request_body")
    assert [e.code for e in effects if isinstance(e, Abort)] == ["INTERNAL"]
    assert replies(effects) == []


# -- shadow mode ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX], ids=["buffered", "duplex"])
def test_a_pick_of_shadow_mode_sets_no_header_and_its_load_is_released_at_the_end(
    mode: Any,
) -> None:
    stream = make(debug_headers=True)
    stream.receive(request_headers(mode=mode, **SPOOFED))
    stream.receive(request_body(b"{}"))
    effects = stream.decided(replace(three_pods(), shadow=True))
    assert [e for e in effects if isinstance(e, Settled)] == [Settled("passed", "shadow")]
    sent = common(replies(effects)[0])
    assert set_headers(sent.header_mutation) == {}
    assert set(sent.header_mutation.remove_headers) == set(DESTINATIONS)
    assert not sent.clear_route_cache
    assert not replies(effects)[0].HasField("dynamic_metadata")
    told = stream.receive(response_headers())
    assert PrefillDone("ticket") in told
    answer = replies(told)[0].response_headers.response
    assert "target-pod" not in set_headers(answer.header_mutation)
    assert Release("ticket") in stream.closed(10.0)
