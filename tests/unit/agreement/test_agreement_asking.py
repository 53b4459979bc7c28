"""What engines are asked beside requests, over real HTTP, and what their answers mean."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from aibrix_extproc.agreement.asking import EngineAsker
from aibrix_extproc.agreement.fingerprints import Fingerprint
from aibrix_extproc.metrics import Metrics
from tests.support import free_port
from tests.unit.agreement.agreement_rig import fake_engines

ERRORS = "aibrix_extproc_agreement_errors_total"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[tuple[EngineAsker, str, Metrics]]:
    """A server that answers every path so, and an asker."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    metrics = Metrics()
    asker = EngineAsker(metrics, timeout_s=0.2)
    await asker.start()
    try:
        yield asker, f"127.0.0.1:{runner.addresses[0][1]}", metrics
    finally:
        await asker.close()
        await runner.cleanup()


async def test_equal_tokenizers_have_equal_fingerprints() -> None:
    async with fake_engines(128_256, 128_256, 64_000) as rig:
        one, same, other = [
            await rig.asker.fingerprint(e.config.name, f"http://{e.address}", "tiny")
            for e in rig.engines
        ]
    assert one is not None
    assert one == same != other
    assert one.text != one.chat


async def test_an_engines_own_counters_are_read() -> None:
    async with fake_engines(128_256) as rig:
        counted = await rig.asker.counters("p0", rig.engines[0].address)
    assert counted is not None
    assert (counted.queries, counted.hits) == (0, 0)


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_model_that_will_not_be_tokenized_is_no_failure(status: int) -> None:
    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    async with answering(refuse) as (asker, address, metrics):
        found = await asker.fingerprint("p", f"http://{address}", "m")
        assert found == Fingerprint(None, None)
        assert not metrics.registry.get_sample_value(ERRORS, {"reason": "tokenize_status"})


async def _fails(_request: web.Request) -> web.Response:
    return web.Response(status=500)


async def _nonsense(_request: web.Request) -> web.Response:
    return web.Response(body=b'{"tokens": [-1]}')


async def _hangs(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await request.content.wait_eof()
    await asyncio.Event().wait()
    return response


@pytest.mark.parametrize(
    ("handler", "tokenize", "metrics_reason"),
    [
        (_fails, "tokenize_status", "metrics_status"),
        (_nonsense, "tokenize_reply", "metrics_none"),
        (_hangs, "tokenize_timeout", "metrics_timeout"),
    ],
)
async def test_what_fails_is_counted_by_reason_and_told_once(
    handler: Handler,
    tokenize: str,
    metrics_reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with answering(handler) as (asker, address, metrics):
        for _ in range(2):
            assert await asker.fingerprint("p", f"http://{address}", "m") is None
            assert await asker.counters("p", address) is None
        for reason in (tokenize, metrics_reason):
            assert metrics.registry.get_sample_value(ERRORS, {"reason": reason}) == 2
    assert caplog.text.count("tokens of p: ok →") == 1
    assert caplog.text.count("counters of p: ok →") == 1


async def test_a_pod_that_is_away_is_counted_so() -> None:
    metrics = Metrics()
    asker = EngineAsker(metrics)
    await asker.start()
    try:
        assert await asker.counters("p", f"127.0.0.1:{free_port()}") is None
    finally:
        await asker.close()
    assert metrics.registry.get_sample_value(ERRORS, {"reason": "metrics_connection"}) == 1
