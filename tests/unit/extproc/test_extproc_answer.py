"""What a stream learns of its answer: who served, and the token counts of a sampled one."""

from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from aibrix_extproc.agreement.usage import NoUsage, Usage
from aibrix_extproc.extproc.effects import Effect, Observed, PrefillDone, Release, Reply
from aibrix_extproc.extproc.inflight import InflightBytes
from aibrix_extproc.extproc.stream import Stream
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.settings import Settings
from tests.unit.extproc.extproc_fixtures import (
    BUFFERED,
    DUPLEX,
    NONE,
    request_body,
    request_headers,
    response_body,
    response_headers,
    response_trailers,
    three_pods,
)
from tests.unit.extproc.extproc_rig import rig

ANSWER = b'{"usage": {"prompt_tokens": 40, "prompt_tokens_details": {"cached_tokens": 32}}}'
FOUND = Usage(40, 32)


def decided(sampled: bool = True, mode: int = BUFFERED, response_mode: int = NONE) -> Stream:
    stream = Stream(Settings(), InflightBytes(1 << 30))
    stream.receive(request_headers(mode=mode, response_mode=response_mode))
    stream.receive(request_body(b"{}"))
    stream.decided(replace(three_pods(ticket="t"), is_sampled=sampled))
    return stream


def done(effects: Iterable[Effect]) -> PrefillDone:
    (found,) = [effect for effect in effects if isinstance(effect, PrefillDone)]
    return found


def observed(effects: Iterable[Effect]) -> list[Usage | NoUsage]:
    return [effect.found for effect in effects if isinstance(effect, Observed)]


def reply(effects: Iterable[Effect]) -> pb.ProcessingResponse:
    (found,) = [effect.response for effect in effects if isinstance(effect, Reply)]
    return found


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
def test_the_host_that_serves_is_told_where_envoy_says_it(mode: int) -> None:
    stream = decided(mode=mode)
    effect = done(stream.receive(response_headers(served_by="10.0.0.2:8000")))
    assert effect == PrefillDone("t", "10.0.0.2:8000", True)


def test_without_the_attribute_or_with_an_empty_one_nobody_is_named() -> None:
    assert done(decided().receive(response_headers())).served_by is None
    assert done(decided().receive(response_headers(served_by=""))).served_by is None


def test_an_answer_that_is_no_success_says_so() -> None:
    assert not done(decided().receive(response_headers("503"))).succeeded


def test_the_body_of_a_sampled_answer_is_asked_for_as_it_comes() -> None:
    stream = decided()
    asked = reply(stream.receive(response_headers()))
    assert asked.mode_override.response_body_mode == pb.ProcessingMode.STREAMED
    assert observed(stream.receive(response_body(ANSWER[:30]))) == []
    effects = stream.receive(response_body(ANSWER[30:], end=True))
    assert observed(effects) == [FOUND]
    # Booked while the ticket is still held, and said once.
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Observed) < kinds.index(Release)
    assert observed(stream.closed()) == []


def test_every_piece_goes_on_unchanged() -> None:
    stream = decided()
    stream.receive(response_headers())
    passed = reply(stream.receive(response_body(ANSWER, end=True)))
    assert passed.response_body == pb.BodyResponse(response=pb.CommonResponse())


@pytest.mark.parametrize(
    ("sampled", "headers"),
    [
        (False, response_headers()),
        (True, response_headers("500")),
        (True, response_headers(end=True)),
    ],
)
def test_no_other_body_is_asked_for(sampled: bool, headers: pb.ProcessingRequest) -> None:
    stream = decided(sampled)
    effects = stream.receive(headers)
    assert not reply(effects).HasField("mode_override")
    assert observed([*effects, *stream.closed()]) == []


def test_a_body_that_envoy_does_not_hand_over_is_told() -> None:
    stream = decided()
    stream.receive(response_headers())
    assert observed(stream.closed()) == [NoUsage.NOT_SENT]


def test_an_answer_that_is_cut_off_is_told() -> None:
    stream = decided()
    stream.receive(response_headers())
    stream.receive(response_body(ANSWER[:30]))
    assert observed(stream.closed()) == [NoUsage.UNFINISHED]


def test_trailers_end_an_answer_too() -> None:
    stream = decided()
    stream.receive(response_headers())
    stream.receive(response_body(ANSWER))
    assert observed(stream.receive(response_trailers())) == [FOUND]


def test_in_duplex_nothing_is_asked_for_and_what_comes_anyhow_is_read() -> None:
    silent = decided(mode=DUPLEX)
    assert not reply(silent.receive(response_headers())).HasField("mode_override")
    assert observed(silent.closed()) == [NoUsage.NOT_SENT]
    stream = decided(mode=DUPLEX, response_mode=DUPLEX)
    assert not reply(stream.receive(response_headers())).HasField("mode_override")
    effects = stream.receive(response_body(ANSWER, end=True))
    assert observed(effects) == [FOUND]
    streamed = reply(effects).response_body.response.body_mutation.streamed_response
    assert (streamed.body, streamed.end_of_stream) == (ANSWER, True)


async def test_the_decider_is_told_all_of_it() -> None:
    async with rig() as r:
        r.decider.outcome = lambda _: replace(three_pods(), is_sampled=True)
        call: Any = r.open()
        for message in (
            request_headers(),
            request_body(b"{}"),
            response_headers(served_by="10.0.0.1:8000"),
            response_body(ANSWER, end=True),
        ):
            await call.write(message)
            await call.read()
        await call.done_writing()
        await call.code()
        assert r.decider.served == [("10.0.0.1:8000", True)]
        assert r.decider.found == [FOUND]
        assert r.decider.released == ["ticket"]
