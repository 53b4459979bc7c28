"""The adapter over a real channel: decisions, cancellation, limits, failures, counters."""

import asyncio
import logging
from typing import Any

import grpc
import pytest

from aibrix_extproc.errors import ModelNotFound, SettingsError
from aibrix_extproc.extproc.decides import Answered, Outcome, Passed, RouteRequest
from aibrix_extproc.extproc.effects import Effect, Reply
from aibrix_extproc.extproc.service import SERVICE, Processor, listen, make_server
from aibrix_extproc.extproc.stream import Stream
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.settings import Settings
from tests.support import eventually_async
from tests.unit.extproc.extproc_fixtures import (
    DUPLEX,
    StubDecider,
    common,
    request_body,
    request_headers,
    response_headers,
    set_headers,
    three_pods,
)
from tests.unit.extproc.extproc_rig import Rig, faults_told, rig

REQUESTS = "aibrix_extproc_requests_total"
PASSED = "aibrix_extproc_passed_total"


async def buffered(call: Any, body: bytes = b"{}") -> pb.ProcessingResponse:
    """Headers and body as Envoy sends them; the reply to the body."""
    await call.write(request_headers())
    reply = await call.read()
    assert reply.HasField("request_headers")
    await call.write(request_body(body))
    outcome = await call.read()
    assert isinstance(outcome, pb.ProcessingResponse)
    return outcome


async def all_replies(call: Any) -> list[pb.ProcessingResponse]:
    found = []
    while (reply := await call.read()) is not grpc.aio.EOF:
        found.append(reply)
    return found


async def test_a_buffered_request_is_picked_counted_and_released() -> None:
    async with rig() as r:
        call = r.open()
        reply = await buffered(call)
        values = set_headers(common(reply).header_mutation)
        assert values["target-pod"] == "10.0.0.1:8000"
        await call.write(response_headers())
        assert (await call.read()).HasField("response_headers")
        assert r.decider.done == ["ticket"]
        assert r.decider.released == []
        assert r.count("aibrix_extproc_streams") == 1
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        await eventually_async(lambda: r.decider.released == ["ticket"])
        assert r.count(REQUESTS, outcome="picked") == 1
        assert r.count("aibrix_extproc_streams") == 0
        assert r.count("aibrix_extproc_inflight_body_bytes") == 0


async def test_a_duplex_request_is_echoed() -> None:
    body = bytes(range(256)) * 1200
    async with rig() as r:
        call = r.open()
        await call.write(request_headers(mode=DUPLEX))
        for start in range(0, len(body), 32_768):
            await call.write(request_body(body[start : start + 32_768], end=False))
        await call.write(request_body(b"", end=True))
        await call.done_writing()
        first, *echo = await all_replies(call)
        assert common(first).clear_route_cache
        pieces = [common(reply).body_mutation.streamed_response for reply in echo]
        assert b"".join(piece.body for piece in pieces) == body
        assert await call.code() is grpc.StatusCode.OK


async def test_a_body_at_the_limit_gets_through_grpcs_own_limit() -> None:
    async with rig(max_body_bytes=5 * 1024 * 1024) as r:
        reply = await buffered(r.open(), b"x" * r.settings.max_body_bytes)
        assert reply.HasField("request_body")
        reply = await buffered(r.open(), b"x" * (r.settings.max_body_bytes + 1))
        assert reply.immediate_response.status.code == 413


async def test_a_client_that_leaves_cancels_the_decision() -> None:
    async with rig() as r:
        r.decider.gate.clear()
        call = r.open()
        await call.write(request_headers())
        await call.read()
        await call.write(request_body(b"{}"))
        await eventually_async(lambda: r.decider.requests)
        assert r.count("aibrix_extproc_inflight_body_bytes") == 2
        call.cancel()
        await eventually_async(lambda: r.decider.cancelled == 1)
        await eventually_async(lambda: r.service.open_streams == 0)
        assert r.count(REQUESTS, outcome="left") == 1
        assert r.count("aibrix_extproc_inflight_body_bytes") == 0


async def test_a_client_that_leaves_during_the_answer_releases() -> None:
    async with rig() as r:
        call = r.open()
        await buffered(call)
        call.cancel()
        await eventually_async(lambda: r.decider.released == ["ticket"])


async def test_a_refusal_reaches_the_client_and_is_counted() -> None:
    def refuse(_request: RouteRequest) -> Outcome:
        raise ModelNotFound("nope")

    async with rig(StubDecider(refuse)) as r:
        reply = await buffered(r.open())
        assert reply.immediate_response.status.code == 404
        assert r.count(REQUESTS, outcome="refused") == 1
        errors = "aibrix_prefix_cache_routing_errors_total"
        labels = {"model": "unknown", "error_type": "model_not_found", "using_kv_sync": "false"}
        assert r.count(errors, **labels) == 1


async def test_a_pass_is_counted_by_its_reason() -> None:
    async with rig(StubDecider(lambda _request: Passed("not_listed"))) as r:
        await buffered(r.open())
        assert r.count(REQUESTS, outcome="passed") == 1
        assert r.count(PASSED, reason="not_listed") == 1


async def test_get_v1_models_is_answered() -> None:
    answer = Answered(200, b'{"object":"list"}', "application/json")
    async with rig(StubDecider(lambda _request: answer)) as r:
        call = r.open()
        await call.write(request_headers(path="/v1/models", method="GET", end=True))
        assert (await call.read()).immediate_response.body == answer.body
        assert r.count(REQUESTS, outcome="answered") == 1


@pytest.mark.parametrize("mode", [None, DUPLEX])
async def test_an_internal_error_passes_and_is_told_once(
    mode: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_request: RouteRequest) -> Outcome:
        raise ZeroDivisionError

    async with rig(StubDecider(broken)) as r:
        for _ in range(2):
            call = r.open()
            await call.write(request_headers(mode=mode))
            if mode is None:
                await call.read()
            await call.write(request_body(b"{}"))
            reply = await call.read()
            assert not common(reply).header_mutation.set_headers
            assert not common(reply).clear_route_cache
        assert r.count(PASSED, reason="internal_error") == 2
    told = faults_told(caplog)
    assert len(told) == 1
    assert "ZeroDivisionError" in caplog.text


async def test_a_cancelled_part_of_a_decision_is_no_cancelled_request() -> None:
    def cancelled(_request: RouteRequest) -> Outcome:
        raise asyncio.CancelledError

    async with rig(StubDecider(cancelled)) as r:
        assert (await buffered(r.open())).HasField("request_body")
        assert r.count(PASSED, reason="internal_error") == 1


async def test_a_ledger_that_fails_costs_no_request() -> None:
    class BrokenLedger(StubDecider):
        def prefill_done(self, ticket: object, served_by: str | None, succeeded: bool) -> None:
            raise KeyError(ticket)

        def release(self, ticket: object) -> None:
            raise KeyError(ticket)

    async with rig(BrokenLedger()) as r:
        call = r.open()
        await buffered(call)
        await call.write(response_headers())
        assert (await call.read()).HasField("response_headers")
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


class _BrokenStream(Stream):
    def receive(self, message: pb.ProcessingRequest) -> list[Effect]:
        if message.HasField("request_body"):
            raise RuntimeError("broken")
        return super().receive(message)


async def test_a_broken_stream_still_replies_where_envoy_keeps_the_body() -> None:
    async with rig() as r:
        r.service._make_stream = _BrokenStream
        reply = await buffered(r.open())
        assert not common(reply).header_mutation.set_headers
        assert r.count(PASSED, reason="internal_error") == 1


async def test_a_broken_stream_in_duplex_ends_with_an_error_never_well() -> None:
    async with rig() as r:
        r.service._make_stream = _BrokenStream
        call = r.open()
        await call.write(request_headers(mode=DUPLEX))
        await call.write(request_body(b"{}"))
        assert await call.code() is grpc.StatusCode.INTERNAL


class _LargeReplies(Stream):
    """Its first reply of an answer is more than a client takes that does not read."""

    def receive(self, message: pb.ProcessingRequest) -> list[Effect]:
        effects = super().receive(message)
        if message.HasField("response_headers"):
            body = pb.ImmediateResponse(body=b"x" * (8 << 20))
            effects.insert(0, Reply(pb.ProcessingResponse(immediate_response=body)))
        return effects


async def test_a_client_that_leaves_at_a_reply_leaves_no_reservation() -> None:
    async with rig() as r:
        r.service._make_stream = _LargeReplies
        call = r.open()
        await buffered(call)
        await call.write(response_headers(end=True))
        (one,) = r.service._open
        await eventually_async(lambda: one.stream._ticket is None)
        assert r.decider.released == []
        call.cancel()
        await eventually_async(lambda: r.service.open_streams == 0)
        assert r.decider.released == ["ticket"]


async def test_an_early_end_in_duplex_is_answered_with_an_error() -> None:
    async with rig() as r:
        call = r.open()
        await call.write(request_headers(mode=DUPLEX))
        await call.write(request_body(b"{", end=False))
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.CANCELLED


async def test_above_the_limit_of_streams_requests_are_refused_undecided() -> None:
    async with rig(max_streams=1) as r:
        first = r.open()
        await buffered(first)
        second = r.open()
        await second.write(request_headers())
        immediate = (await second.read()).immediate_response
        assert immediate.status.code == 429
        assert set_headers(immediate.headers)["retry-after"] == "1"
        assert len(r.decider.requests) == 1
        await second.done_writing()
        await first.done_writing()
        await eventually_async(lambda: r.service.open_streams == 0)
        assert (await buffered(r.open())).HasField("request_body")


async def test_a_number_of_streams_that_wavers_about_the_limit_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with rig(max_streams=3) as r:
        calls = [r.open() for _ in range(3)]
        for call in calls:
            await buffered(call)
        for _ in range(4):
            refused = r.open()
            await refused.write(request_headers())
            assert (await refused.read()).immediate_response.status.code == 429
            await refused.done_writing()
            await calls.pop().done_writing()
            await eventually_async(lambda: r.service.open_streams == 2)
            calls.append(r.open())
            await buffered(calls[-1])
        assert caplog.text.count("open requests") == 1
        for call in calls:
            await call.done_writing()
        await eventually_async(lambda: r.service.open_streams == 0)
        await buffered(r.open())
    assert caplog.text.count("open requests") == 2


async def test_one_unusable_mode_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with rig() as r:
        for _ in range(2):
            call = r.open()
            await call.write(request_headers(mode=pb.ProcessingMode.STREAMED))
            assert (await call.read()).immediate_response.status.code == 500
    assert caplog.text.count("Envoy's body mode") == 1


async def test_bodies_past_the_bound_are_told_once_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with rig(max_inflight_bytes=10) as r:
        for size in (11, 11, 5):
            await buffered(r.open(), b"x" * size)
        assert r.count(PASSED, reason="inflight_bytes") == 2
    assert caplog.text.count("bodies held at once") == 2


async def test_many_requests_on_one_channel_do_not_mix() -> None:
    def by_body(request: RouteRequest) -> Outcome:
        return three_pods() if request.body == b"pick" else Passed("other")

    async def one(r: Rig, body: bytes) -> bool:
        call = r.open()
        reply = await buffered(call, body)
        await call.done_writing()
        return bool(common(reply).header_mutation.set_headers)

    async with rig(StubDecider(by_body)) as r:
        bodies = [b"pick" if n % 3 else b"pass" for n in range(60)]
        picked = await asyncio.gather(*(one(r, body) for body in bodies))
        assert picked == [body == b"pick" for body in bodies]


async def test_a_port_in_use_is_a_settings_error() -> None:
    async with rig() as r:
        taken = make_server(Settings())
        port = listen(taken, "127.0.0.1:0")
        other = make_server(Settings())
        with pytest.raises(SettingsError, match="AIBRIX_EXTPROC_GRPC_ADDRESS"):
            listen(other, f"127.0.0.1:{port}")
        assert isinstance(r.service, Processor)
        await taken.stop(0)
        await other.stop(0)


async def test_why_requests_pass_on_without_a_pick_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig(StubDecider(lambda _request: Passed("pods_not_listed"))) as r:
        for _ in range(3):
            await buffered(r.open())
        assert r.count(PASSED, reason="pods_not_listed") == 3
    assert caplog.text.count("pass on without a pick (pods_not_listed)") == 1


async def test_a_message_that_is_no_protobuf_ends_its_stream_with_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig() as r:
        for _ in range(2):
            call = r.channel.stream_stream(
                f"/{SERVICE}/Process", response_deserializer=pb.ProcessingResponse.FromString
            )()
            await call.write(request_headers().SerializeToString())
            await call.write(b"\x0a\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError):
                await all_replies(call)
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        await eventually_async(lambda: r.count("aibrix_extproc_streams") == 0)
        assert r.count(REQUESTS, outcome="left") == 2
        assert caplog.text.count("unreadable") == 1
        assert not faults_told(caplog)
