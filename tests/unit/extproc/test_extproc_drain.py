"""Leaving: what is decided ends well, what is not gets its time-out, nothing ends empty."""

import asyncio
from typing import Any

import grpc
import pytest

from aibrix_extproc.extproc.drain import drain
from tests.support import eventually_async
from tests.unit.extproc.extproc_fixtures import (
    DUPLEX,
    request_body,
    request_headers,
    response_headers,
)
from tests.unit.extproc.extproc_rig import Rig, rig


def start_drain(r: Rig) -> "asyncio.Task[None]":
    return asyncio.ensure_future(drain(r.server, r.service, r.health, r.settings))


async def decided(r: Rig, mode: int | None = None) -> Any:
    """A stream whose outcome is sent, and which Envoy keeps open."""
    call = r.open()
    await call.write(request_headers(mode=mode))
    if mode is None:
        await call.read()
    await call.write(request_body(b"{}"))
    assert (await call.read()).WhichOneof("response") in ("request_body", "request_headers")
    return call


async def code_after_replies(call: Any) -> grpc.StatusCode:
    while await call.read() is not grpc.aio.EOF:
        pass
    code = await call.code()
    assert isinstance(code, grpc.StatusCode)
    return code


@pytest.mark.parametrize("mode", [None, DUPLEX])
async def test_a_stream_whose_outcome_is_sent_ends_well_and_at_once(mode: int | None) -> None:
    async with rig(pre_stop_delay_s=0, decision_timeout_s=60) as r:
        call = await decided(r, mode)
        await asyncio.wait_for(start_drain(r), 10)
        assert await code_after_replies(call) is grpc.StatusCode.OK
        assert not r.health.serving


async def test_it_does_not_wait_for_an_answer_that_streams() -> None:
    async with rig(pre_stop_delay_s=0, decision_timeout_s=60) as r:
        call = await decided(r)
        await call.write(response_headers())
        await call.read()
        await asyncio.wait_for(start_drain(r), 10)
        assert await code_after_replies(call) is grpc.StatusCode.OK
        assert r.decider.released == ["ticket"]


@pytest.mark.parametrize("mode", [None, DUPLEX])
async def test_an_undecided_request_gets_its_decision_first(mode: int | None) -> None:
    async with rig(pre_stop_delay_s=0, decision_timeout_s=60) as r:
        r.decider.gate.clear()
        call = r.open()
        await call.write(request_headers(mode=mode))
        await call.write(request_body(b"{}"))
        await eventually_async(lambda: r.decider.requests)
        draining = start_drain(r)
        await eventually_async(lambda: r.service._draining)
        r.decider.gate.set()
        kinds = []
        while (reply := await call.read()) is not grpc.aio.EOF:
            kinds.append(reply.WhichOneof("response"))
        assert kinds == ["request_headers", "request_body"]
        assert await call.code() is grpc.StatusCode.OK
        await asyncio.wait_for(draining, 10)


async def test_a_body_in_duplex_that_never_ends_is_cut_off_with_an_error() -> None:
    async with rig(pre_stop_delay_s=0, decision_timeout_s=0.05) as r:
        call = r.open()
        await call.write(request_headers(mode=DUPLEX))
        await call.write(request_body(b"{", end=False))
        await eventually_async(lambda: r.service.open_streams == 1)
        await asyncio.wait_for(start_drain(r), 10)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_requests_are_taken_through_the_pre_stop_delay() -> None:
    async with rig(pre_stop_delay_s=30) as r:
        await r.health.set_serving(True)
        draining = start_drain(r)
        await eventually_async(lambda: not r.health.serving)
        await decided(r)
        assert len(r.decider.requests) == 1
        assert not draining.done()
        draining.cancel()
