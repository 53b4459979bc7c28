"""What test_e2e_gateway.py shows in short, with the time-outs and breakers that are shipped."""

import asyncio
from typing import Any

import pytest

from tests.e2e.test_e2e_gateway import BASE, pick, rig, stat
from tests.manifests import gateway_envoy
from tests.manifests.gateway_envoy import ENGINES, PROCESSOR
from tests.support import eventually_async

Json = dict[str, Any]

pytestmark = pytest.mark.acceptance


def patient(config: Json) -> None:
    """A machine that is busy is no reason to go elsewhere."""
    gateway_envoy.ext_proc(gateway_envoy.manager_of(config))["messageTimeout"] = "60s"
    gateway_envoy.cluster(config, ENGINES)["connectTimeout"] = "60s"


async def test_more_streams_than_envoys_default_breaker_allows_are_open_at_once() -> None:
    """A stream lasts as long as its answer: 1,024 would be the limit of requests in flight."""
    many = 1_100
    async with rig(edit=patient) as r:
        pick(r, r.engines[0].address)
        r.engines[0].gate = asyncio.Event()
        r.session.connector._limit = 0
        answers = [asyncio.create_task(r.post()) for _ in range(many)]
        await eventually_async(lambda: len(r.engines[0].requests) == many, timeout_s=60)
        assert await stat(r, f"cluster.{PROCESSOR}.upstream_rq_active") == many
        r.engines[0].gate.set()
        assert set(await asyncio.gather(*answers)) == {(200, "engine-0")}
        assert len(r.processor.seen) == many


async def test_an_answer_of_twelve_seconds_is_heard_to_its_end() -> None:
    """Longer than the 10 s that Envoy Gateway writes into the gRPC service."""
    async with rig(BASE) as r:
        pick(r, r.engines[0].address)
        r.engines[0].gate = asyncio.Event()
        answer = asyncio.create_task(r.post())
        await eventually_async(lambda: r.engines[0].requests)
        ended, _ = await asyncio.wait((answer,), timeout=12)
        assert not ended
        assert await stat(r, f"cluster.{PROCESSOR}.upstream_rq_active") == 1
        r.engines[0].gate.set()
        assert await answer == (200, "engine-0")
        assert r.processor.served_by == [r.engines[0].address]


async def test_a_processor_that_hangs_costs_the_shipped_message_timeout_and_no_request() -> None:
    async with rig(BASE) as r:
        r.processor.stalled = True
        replies = await asyncio.gather(*(r.post() for _ in range(8)))
        assert [status for status, _ in replies] == [200] * 8
        assert len(r.processor.seen) == 8
