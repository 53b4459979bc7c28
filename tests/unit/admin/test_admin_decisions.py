"""`/debug/decisions` over real HTTP."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from aibrix_extproc.admin.debug import DebugServer
from aibrix_extproc.admin.decision_pages import DEFAULT_LIMIT, LARGEST_LIMIT, DecisionPages
from aibrix_extproc.decisions import DecisionRing
from aibrix_extproc.settings import Settings
from tests.unit.decisions.test_decisions_ring import record


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    ring = DecisionRing()
    for number in range(LARGEST_LIMIT + 50):
        ring.add(record(f"request {number}"))
    server = DebugServer(Settings(debug_address="127.0.0.1:0"), [DecisionPages(ring)])
    await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        yield session
    await server.close()


async def ids(http: aiohttp.ClientSession, **query: str) -> list[str]:
    async with http.get("/debug/decisions", params=query) as reply:
        assert reply.status == 200
        return [one["request_id"] for one in await reply.json()]


async def test_the_last_decisions_come_the_newest_first(http: aiohttp.ClientSession) -> None:
    found = await ids(http)
    assert len(found) == DEFAULT_LIMIT
    assert found[:2] == ["request 1049", "request 1048"]
    assert len(await ids(http, limit=str(LARGEST_LIMIT))) == LARGEST_LIMIT


async def test_a_request_is_found_by_its_id(http: aiohttp.ClientSession) -> None:
    assert await ids(http, request_id="request 7") == ["request 7"]
    assert await ids(http, request_id="nobody") == []


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("limit", "0", "1000"),
        ("limit", "1001", "1000"),
        ("limit", "-1", "1000"),
        ("limit", "many", "1000"),
        ("limit", "²", "1000"),
        ("limit", "9" * 500, "1000"),
        ("limit", "", "1000"),
        ("requestid", "x", "request_id"),
    ],
    ids=repr,
)
async def test_a_query_that_makes_no_sense_is_a_400_that_says_what_to_write(
    http: aiohttp.ClientSession, field: str, value: str, named: str
) -> None:
    async with http.get("/debug/decisions", params={field: value}) as reply:
        assert reply.status == 400
        assert named in (await reply.json())["error"]["message"]
