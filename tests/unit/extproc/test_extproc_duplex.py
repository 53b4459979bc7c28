"""The stream's logic in FULL_DUPLEX_STREAMED: nothing before the decision, then every byte back."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.errors import ModelNotFound
from aibrix_extproc.extproc.decides import Answered, Outcome, Passed, RouteRequest
from aibrix_extproc.extproc.effects import (
    Decide,
    Effect,
    PrefillDone,
    Release,
    Reply,
    Settled,
)
from aibrix_extproc.extproc.inflight import InflightBytes
from aibrix_extproc.extproc.messages import CHUNK_BYTES
from aibrix_extproc.extproc.stream import LINGER_S, Stream
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.settings import Settings
from tests.unit.extproc.extproc_fixtures import (
    DESTINATIONS,
    DUPLEX,
    NONE,
    common,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
    set_headers,
    three_pods,
)

END = True
NO_END = False


def make(inflight_bytes: int = 1 << 30, **settings: Any) -> Stream:
    return Stream(Settings(**settings), InflightBytes(inflight_bytes), new_id=lambda: "new-id")


def head(**fields: Any) -> pb.ProcessingRequest:
    return request_headers(mode=DUPLEX, **fields)


def replies(effects: Iterable[Effect]) -> list[pb.ProcessingResponse]:
    return [effect.response for effect in effects if isinstance(effect, Reply)]


def kinds(effects: Iterable[Effect]) -> list[str | None]:
    return [response.WhichOneof("response") for response in replies(effects)]


def asked(effects: Iterable[Effect]) -> RouteRequest:
    (request,) = [effect.request for effect in effects if isinstance(effect, Decide)]
    return request


def chunks(effects: Iterable[Effect], of: str = "request_body") -> list[tuple[bytes, bool]]:
    """The streamed pieces, (bytes, end of stream), in order."""
    found = []
    for response in replies(effects):
        if response.WhichOneof("response") == of:
            piece = common(response).body_mutation.streamed_response
            assert common(response).body_mutation.WhichOneof("mutation") == "streamed_response"
            found.append((piece.body, piece.end_of_stream))
    return found


def collected(pieces: list[tuple[bytes, bool]], **settings: Any) -> tuple[Stream, RouteRequest]:
    stream = make(**settings)
    assert stream.receive(head()) == []
    for body, end in pieces[:-1]:
        assert stream.receive(request_body(body, end)) == []
    return stream, asked(stream.receive(request_body(*pieces[-1])))


def test_nothing_is_answered_before_the_decision() -> None:
    _, request = collected([(b'{"model"', NO_END), (b':"m"}', END)])
    assert request.body == b'{"model":"m"}'


def test_the_pick_is_in_the_reply_to_the_headers_and_the_bytes_follow() -> None:
    stream, _ = collected([(b"ab", NO_END), (b"cd", END)])
    effects = stream.decided(three_pods())
    assert kinds(effects) == ["request_headers", "request_body"]
    first = replies(effects)[0]
    assert common(first).clear_route_cache
    values = set_headers(common(first).header_mutation)
    assert values["target-pod"] == "10.0.0.1:8000"
    metadata = first.dynamic_metadata.fields["envoy.lb"].struct_value.fields
    endpoints = metadata["x-gateway-destination-endpoint"].string_value
    assert endpoints == values["x-gateway-destination-endpoint"]
    assert chunks(effects) == [(b"abcd", END)]
    assert not replies(effects)[1].HasField("dynamic_metadata")


def test_300_kb_come_back_in_chunks_of_at_most_62_000_bytes() -> None:
    body = bytes(range(256)) * 1200
    pieces = [(body[i : i + 32_768], NO_END) for i in range(0, len(body), 32_768)]
    stream, request = collected([*pieces, (b"", END)])
    assert request.body == body
    echoed = chunks(stream.decided(three_pods()))
    assert b"".join(piece for piece, _ in echoed) == body
    assert max(len(piece) for piece, _ in echoed) == 62_000
    assert [end for _, end in echoed] == [NO_END] * (len(echoed) - 1) + [END]


@given(
    sizes=st.lists(st.integers(0, 3 * CHUNK_BYTES), max_size=6),
    end_apart=st.booleans(),
    trailers=st.booleans(),
    passed=st.booleans(),
)
def test_any_chunking_comes_back_as_the_same_bytes_with_one_end(
    sizes: list[int], end_apart: bool, trailers: bool, passed: bool
) -> None:
    pieces = [bytes([65 + n]) * size for n, size in enumerate(sizes)]
    stream = make()
    stream.receive(head())
    effects: list[Effect] = []
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1 and not end_apart and not trailers
        effects += stream.receive(request_body(piece, last))
    if trailers:
        effects += stream.receive(request_trailers())
    elif end_apart or not pieces:
        effects += stream.receive(request_body(b"", END))
    assert asked(effects).body == b"".join(pieces)
    assert not stream.may_end
    effects = stream.decided(Passed("not_listed") if passed else three_pods())
    assert stream.may_end
    echoed = chunks(effects)
    assert b"".join(piece for piece, _ in echoed) == b"".join(pieces)
    assert all(len(piece) <= CHUNK_BYTES for piece, _ in echoed)
    ends = [end for _, end in echoed]
    if trailers:
        assert not any(ends)
        assert kinds(effects)[-1] == "request_trailers"
    else:
        assert ends == [NO_END] * (len(ends) - 1) + [END]
    assert kinds(effects)[0] == "request_headers"


@given(sizes=st.lists(st.integers(0, 2 * CHUNK_BYTES), min_size=1, max_size=5), at=st.integers(0))
def test_past_the_bound_of_all_bodies_every_byte_is_still_echoed(sizes: list[int], at: int) -> None:
    body_bytes = sum(sizes)
    stream = make(inflight_bytes=at % (body_bytes + 1))
    stream.receive(head())
    effects: list[Effect] = []
    for number, size in enumerate(sizes):
        effects += stream.receive(request_body(b"x" * size, number == len(sizes) - 1))
    if any(isinstance(effect, Decide) for effect in effects):
        effects += stream.decided(three_pods())
    else:
        assert Settled("passed", "inflight_bytes") in effects
    echoed = chunks(effects)
    assert sum(len(piece) for piece, _ in echoed) == body_bytes
    assert [end for _, end in echoed] == [NO_END] * (len(echoed) - 1) + [END]
    assert kinds(effects).count("request_headers") == 1


def test_a_body_that_passes_is_echoed_as_it_comes() -> None:
    stream = make()
    effects = stream.receive(head(path="/upload"))
    assert set(common(replies(effects)[0]).header_mutation.remove_headers) == DESTINATIONS
    assert not common(replies(effects)[0]).clear_route_cache
    assert chunks(effects) == []
    assert chunks(stream.receive(request_body(b"a", NO_END))) == [(b"a", NO_END)]
    assert stream.receive(request_body(b"", NO_END)) == []
    assert not stream.may_end
    big = b"b" * (CHUNK_BYTES + 1)
    assert chunks(stream.receive(request_body(big, END))) == [
        (big[:CHUNK_BYTES], NO_END),
        (b"b", END),
    ]
    assert stream.may_end


def test_what_passes_has_no_limit_in_duplex() -> None:
    stream = make(max_body_bytes=10)
    effects = stream.receive(head(path="/upload", content_length="100"))
    assert kinds(effects) == ["request_headers"]
    assert chunks(stream.receive(request_body(b"x" * 100))) == [(b"x" * 100, END)]


def test_a_request_without_a_body_gets_no_chunk() -> None:
    stream = make()
    asked(stream.receive(head(end=True)))
    effects = stream.decided(three_pods())
    assert kinds(effects) == ["request_headers"]
    assert stream.may_end


def test_an_empty_body_gets_one_empty_chunk_with_the_end() -> None:
    stream, _ = collected([(b"", END)])
    assert chunks(stream.decided(three_pods())) == [(b"", END)]


@pytest.mark.parametrize("when", ["deciding", "decided"])
@pytest.mark.parametrize("again", [request_body(b"", END), request_trailers()])
def test_a_second_end_is_ignored(when: str, again: pb.ProcessingRequest) -> None:
    stream, _ = collected([(b"a", END)])
    if when == "decided":
        stream.decided(three_pods())
        assert stream.receive(again) == []
    else:
        assert stream.receive(again) == []
        assert chunks(stream.decided(three_pods())) == [(b"a", END)]


def test_trailers_end_a_body_that_passes() -> None:
    stream = make()
    stream.receive(head(path="/upload"))
    stream.receive(request_body(b"a", NO_END))
    assert kinds(stream.receive(request_trailers())) == ["request_trailers"]
    assert stream.may_end


@pytest.mark.parametrize(
    "refuse",
    [
        lambda stream: stream.refused(ModelNotFound("m")),
        lambda stream: stream.decided(Answered(404, b"", "text/plain")),
    ],
)
def test_an_error_is_answered_before_the_echo_and_nothing_is_echoed(
    refuse: Callable[[Stream], list[Effect]],
) -> None:
    stream, _ = collected([(b"a", END)])
    effects = refuse(stream)
    assert kinds(effects) == ["immediate_response"]
    assert replies(effects)[0].immediate_response.status.code == 404
    assert stream.receive(request_body(b"", END)) == []


def test_the_limit_is_counted_while_chunks_come() -> None:
    stream = make(max_body_bytes=10)
    stream.receive(head())
    assert stream.receive(request_body(b"x" * 6, NO_END)) == []
    effects = stream.receive(request_body(b"x" * 6, NO_END))
    assert replies(effects)[0].immediate_response.status.code == 413
    assert stream.receive(request_body(b"x" * 6, NO_END)) == []


def test_the_bytes_held_are_given_back_with_the_echo() -> None:
    inflight = InflightBytes(100)
    stream = Stream(Settings(), inflight)
    stream.receive(head())
    stream.receive(request_body(b"x" * 30, NO_END))
    stream.receive(request_body(b"x" * 30, END))
    assert inflight.used_bytes == 60
    stream.decided(three_pods())
    assert inflight.used_bytes == 0


# -- no OK end before the echo is complete ----------------------------------------------------


def test_no_ok_end_before_the_echo_is_complete() -> None:
    stream = make()
    stream.receive(head())
    assert not stream.may_end
    stream.receive(request_body(b"a", NO_END))
    assert not stream.may_end
    stream.receive(request_body(b"b", END))
    assert not stream.may_end
    stream.decided(three_pods())
    assert stream.may_end


def test_no_ok_end_while_an_answer_is_owed_back() -> None:
    stream, _ = answered(response_mode=DUPLEX)
    stream.receive(response_headers())
    assert not stream.may_end
    stream.receive(response_body(b"x", END))
    assert stream.may_end


# -- the answer -------------------------------------------------------------------------------


def answered(outcome: Outcome | None = None, response_mode: int = NONE) -> tuple[Stream, Any]:
    stream = make()
    stream.receive(head(response_mode=response_mode))
    request = asked(stream.receive(request_body(b"{}")))
    stream.decided(outcome or three_pods(ticket="t"))
    return stream, request


def test_an_answer_in_duplex_is_echoed_as_it_comes() -> None:
    stream, _ = answered(response_mode=DUPLEX)
    assert kinds(stream.receive(response_headers())) == ["response_headers"]
    first = stream.receive(response_body(b"x" * (CHUNK_BYTES + 1)))
    assert [len(piece) for piece, _ in chunks(first, "response_body")] == [CHUNK_BYTES, 1]
    last = stream.receive(response_body(b"y", END))
    assert chunks(last, "response_body") == [(b"y", END)]
    assert Release("t") in last
    assert stream.receive(response_body(b"", END)) == []


def test_an_answer_with_trailers_ends_with_them() -> None:
    stream, _ = answered(response_mode=DUPLEX)
    stream.receive(response_headers())
    assert chunks(stream.receive(response_body(b"y")), "response_body") == [(b"y", NO_END)]
    effects = stream.receive(response_trailers())
    assert kinds(effects) == ["response_trailers"]
    assert Release("t") in effects


def test_an_answer_that_envoy_keeps_is_only_let_through() -> None:
    stream, _ = answered()
    reply = replies(stream.receive(response_body(b"x")))[0]
    assert not common(reply).HasField("body_mutation")


# -- the ledger -------------------------------------------------------------------------------


@pytest.mark.parametrize(("response_mode", "end_seen"), [(NONE, False), (DUPLEX, True)])
def test_the_decision_is_told_whether_the_answers_end_will_be_seen(
    response_mode: int, end_seen: bool
) -> None:
    _, request = answered(response_mode=response_mode)
    assert request.end_seen is end_seen


def test_response_headers_end_the_prefill() -> None:
    stream, _ = answered()
    assert PrefillDone("t") in stream.receive(response_headers())


def test_a_stream_that_ends_with_the_body_leaves_its_reservation_to_expire() -> None:
    stream, _ = answered()
    stream.receive(response_headers())
    assert stream.closed(quiet_s=LINGER_S / 10) == []


def test_where_duplex_is_only_assumed_the_end_of_the_answer_may_not_be_seen() -> None:
    stream = make(default_body_mode="duplex")
    stream.receive(request_headers(mode=None))
    assert not asked(stream.receive(request_body(b"{}", END))).end_seen
    stream.decided(three_pods("t"))
    assert stream.closed(quiet_s=LINGER_S / 10) == []


def test_a_stream_kept_open_for_the_answers_end_releases_at_its_own() -> None:
    stream, _ = answered()
    stream.receive(response_headers())
    assert stream.closed(quiet_s=LINGER_S) == [Release("t")]


def test_a_stream_that_owes_the_answer_releases_when_the_client_leaves() -> None:
    stream, _ = answered(response_mode=DUPLEX)
    stream.receive(response_headers())
    assert stream.closed() == [Release("t")]


def test_response_trailers_release() -> None:
    stream, _ = answered()
    stream.receive(response_headers())
    assert Release("t") in stream.receive(response_trailers())
    assert stream.closed(quiet_s=1.0) == []
