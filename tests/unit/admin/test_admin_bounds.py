"""Who holds connections of the admin port open keeps nobody away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest

from aibrix_extproc.admin import http as admin_http
from aibrix_extproc.admin.server import AdminServer
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.support import eventually_async
from tests.unit.admin.admin_rig import World


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AdminServer]:
    monkeypatch.setattr(admin_http, "MAX_CONNECTIONS", 8)
    metrics = Metrics()
    settings = Settings(admin_address="127.0.0.1:0")
    server = AdminServer(settings, metrics, Registry(metrics), World(), dict, "core")
    await server.start()
    yield server
    await server.close()


async def test_at_the_limit_the_oldest_connection_goes_and_a_probe_is_answered(
    server: AdminServer,
) -> None:
    held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(40)]
    url = f"http://127.0.0.1:{server.port}/healthz"
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        assert reply.status == 200

    async def closed() -> bool:
        ended = 0
        for reader, _ in held:
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(0.001):
                    await reader.read(1)
            ended += reader.at_eof()
        return ended >= 32

    await eventually_async(closed)
    assert not held[-1][0].at_eof()
    for _, writer in held:
        writer.close()


@pytest.mark.parametrize(
    "request_",
    ["GET /healthz HTTP/1.1\r\nx: " + "y" * 20_000, "GET /" + "z" * 20_000 + " HTTP/1.1"],
)
async def test_an_endless_head_is_refused(server: AdminServer, request_: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request_.encode() + b"\r\n\r\n")
    assert b" 400 " in await reader.readline()
    writer.close()
