"""Through a real Envoy, requests go to the engine whose KV cache is least used by its own word."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from aibrix_extproc.fakes.config import EngineConfig, TimeModel
from aibrix_extproc.fakes.engine import FakeEngine
from tests.e2e.beside import added, samples
from tests.e2e.stack import Stack, gateway
from tests.support import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

BY_CACHE = {"routing-strategy": "least-kv-cache"}
FALLBACKS = "aibrix_extproc_strategy_fallback_total"
ENVIRONMENT = {
    "AIBRIX_EXTPROC_KV_USAGE_INTERVAL": "50ms",
    "AIBRIX_EXTPROC_KV_USAGE_MAX_AGE": "10s",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    slow = TimeModel(decode_ms_per_token=20.0)
    configs = [
        EngineConfig(name=f"engine-{number}", num_blocks=201, time=slow) for number in range(3)
    ]
    async with gateway(engines=configs, environment=ENVIRONMENT) as started:
        yield started


@contextlib.asynccontextmanager
async def filled(engine: FakeEngine, tokens: int) -> AsyncIterator[None]:
    """Somebody who does not come through the gateway has so many tokens in this cache."""
    body = {"model": "tiny", "prompt": [7] * tokens, "max_tokens": 1000, "ignore_eos": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{engine.address}/v1/completions", json=body | {"stream": True}),
    ):
        await eventually_async(lambda: engine.ranks[0].blocks.used_blocks >= tokens // 16)
        yield


async def scores(stack: Stack) -> dict[str, float]:
    """What a decision would go by now, by the pod's name."""
    url = f"{stack.servers[0].debug_url}/debug/explain?path=/v1/completions"
    body = {"model": "tiny", "prompt": "x"}
    async with stack.session.post(url, json=body, headers=BY_CACHE) as reply:
        page = await reply.json()
    return {one["pod"].partition("/")[2]: one["score"] for one in page["candidates"]}


async def test_the_first_request_finds_nothing_known_and_is_counted(stack: Stack) -> None:
    reply = await stack.complete("x", headers=BY_CACHE)
    assert reply.status == 200
    assert await samples(stack, FALLBACKS) == {("kv_cache_unknown", "least-kv-cache"): 1}

    async def known() -> bool:
        before = await samples(stack, FALLBACKS)
        assert (await stack.complete("x", headers=BY_CACHE)).status == 200
        return not added(before, await samples(stack, FALLBACKS))

    await eventually_async(known)


async def test_load_that_this_server_did_not_send_is_seen_and_avoided(stack: Stack) -> None:
    first, second, third = stack.engines
    async with filled(first, 1600), filled(third, 2000):

        async def seen() -> bool:
            found = await scores(stack)
            return min(found["engine-0"], found["engine-2"]) > 0.45 and found["engine-1"] < 0.1

        await eventually_async(seen)
        for number in range(6):
            reply = await stack.complete(f"{number}", headers=BY_CACHE)
            assert reply.pod == second.config.name
        # `least-request` knows nothing of it.
        blind = {"routing-strategy": "least-request"}
        chosen = Counter([(await stack.complete("x", headers=blind)).pod for _ in range(20)])
        assert len(chosen) > 1


async def test_an_engine_that_says_nothing_any_more_is_judged_by_the_ledger(stack: Stack) -> None:
    """It has no sample, as a pod that has just come."""
    gone = stack.engines[2]
    stack.list_pods(*(stack.endpoint(number) for number in range(2)))
    await eventually_async(lambda: listed(stack, 2))
    stack.list_pods(
        stack.endpoint(0),
        stack.endpoint(1),
        stack.endpoint(2, metrics_port=1, name="mute", labels={"pod": "mute"}),
    )
    await eventually_async(lambda: listed(stack, 3))
    async with filled(stack.engines[0], 1600), filled(stack.engines[1], 1600):

        async def seen() -> bool:
            found = await scores(stack)
            return min(found["engine-0"], found["engine-1"]) > 0.45

        await eventually_async(seen)
        before = await samples(stack, FALLBACKS)
        reply = await stack.complete("x", headers=BY_CACHE)
        assert reply.pod == gone.config.name
        grown = added(before, await samples(stack, FALLBACKS))
        assert grown == {("kv_cache_partly", "least-kv-cache"): 1}


async def listed(stack: Stack, count: int) -> bool:
    return len(await scores(stack)) == count
