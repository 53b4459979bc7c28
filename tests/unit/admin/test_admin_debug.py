"""The debug port over real HTTP: its pages, its errors, and what it refuses."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from aibrix_extproc.admin import insight
from aibrix_extproc.admin.debug import DebugServer
from aibrix_extproc.admin.http import read_body
from aibrix_extproc.admin.insight import InsightPages
from aibrix_extproc.errors import ModelNotFound, SettingsError
from aibrix_extproc.settings import Settings
from tests.unit.admin.admin_rig import World

JSON = {"content-type": "application/json"}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def server(world: World) -> AsyncIterator[DebugServer]:
    settings = Settings(
        debug_address="127.0.0.1:0", debug_hosts=("processor",), max_body_bytes=1000
    )
    server = DebugServer(settings, [InsightPages(world, world, settings.max_body_bytes)])
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def http(server: DebugServer) -> AsyncIterator[aiohttp.ClientSession]:
    url = f"http://127.0.0.1:{server.port}"
    async with aiohttp.ClientSession(url, headers=JSON) as session:
        yield session


async def test_sources_show_their_state(http: aiohttp.ClientSession) -> None:
    async with http.get("/debug/sources") as reply:
        (source,) = await reply.json()
    assert source["pod"] == "default/vllm-0"
    assert source["state"] is None
    assert (source["sequence"], source["lag_s"], source["placements"]) == (41, 0.25, 1000)


async def test_explain_asks_with_the_body_as_it_came(
    http: aiohttp.ClientSession, world: World
) -> None:
    body = b'{ "model": "llama",  "messages": [] }'
    async with http.post("/debug/explain", data=body) as reply:
        assert reply.status == 200
        assert await reply.json() == {"outcome": "picked", "reason": "prefix"}
    (asked,) = world.asked
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert asked.body == body
    assert asked.headers == {}
    assert asked.subset is None


async def test_explain_takes_a_path_and_the_headers_that_choose(
    http: aiohttp.ClientSession, world: World
) -> None:
    async with http.post(
        "/debug/explain?path=/v1/completions",
        data=b"{}",
        headers={
            "Routing-Strategy": "random",
            "External-Filter": "a=b",
            "X-Session-Id": "alice",
            "X-Other": "1",
        },
    ):
        (asked,) = world.asked
    assert asked.path == "/v1/completions"
    assert asked.headers == {
        "routing-strategy": "random",
        "external-filter": "a=b",
        "x-session-id": "alice",
    }


async def test_an_error_of_the_request_is_told_as_a_client_would_see_it(
    http: aiohttp.ClientSession, world: World
) -> None:
    world.error = ModelNotFound("gpt")
    async with http.post("/debug/explain", data=b"{}") as reply:
        assert reply.status == 404
        assert reply.headers["x-error-no-model-backends"] == "gpt"
        error = (await reply.json())["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")


async def test_a_body_at_the_limit_is_explained_and_one_above_it_refused(
    http: aiohttp.ClientSession, world: World
) -> None:
    async with http.post("/debug/explain", data=b"x" * 1000) as reply:
        assert reply.status == 200
    async with http.post("/debug/explain", data=b"x" * 1001) as reply:
        assert reply.status == 413
        assert (await reply.json())["error"]["code"] == "request_too_large"
    assert len(world.asked) == 1


async def test_a_body_that_is_not_encoded_as_it_says_is_the_askers_error(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"content-encoding": "gzip"}
    async with http.post("/debug/explain", data=b"no gzip", headers=headers) as reply:
        assert reply.status == 400
        assert "Content-Encoding" in (await reply.json())["error"]["message"]
    assert "failed" not in caplog.text


async def test_someone_who_leaves_in_the_midst_of_a_body_is_no_failure(
    server: DebugServer,
    http: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handled = asyncio.Event()

    async def body(request: web.Request, limit_bytes: int) -> bytes:
        try:
            return await read_body(request, limit_bytes)
        finally:
            handled.set()

    monkeypatch.setattr(insight, "read_body", body)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"POST /debug/explain HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    )
    await writer.drain()
    writer.close()
    await asyncio.wait_for(handled.wait(), 10)
    async with http.get("/debug/sources") as reply:
        assert reply.status == 200
    assert "failed" not in caplog.text


async def test_a_page_that_fails_is_a_500_and_a_line_in_the_log(
    http: aiohttp.ClientSession, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.error = RuntimeError("broken")
    with caplog.at_level(logging.ERROR, "aibrix_extproc.admin.http"):
        async with http.post("/debug/explain", data=b'{"prompt": "secret words"}') as reply:
            assert reply.status == 500
            page = json.dumps(await reply.json())
    assert "broken" not in page
    assert "broken" in caplog.text
    assert "secret words" not in caplog.text
    async with http.get("/debug/sources") as reply:
        assert reply.status == 200


async def test_a_wrong_method_is_an_error_that_names_the_right_one(
    http: aiohttp.ClientSession,
) -> None:
    async with http.get("/debug/explain") as reply:
        assert reply.status == 405
        assert reply.headers["allow"] == "POST"
        assert "POST" in (await reply.json())["error"]["message"]


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8081", "10.1.2.3:8081", "[::1]:8081", "processor:8081"]
)
async def test_it_may_be_asked_by_an_address_by_localhost_or_by_a_listed_name(
    http: aiohttp.ClientSession, host: str
) -> None:
    async with http.get("/debug/sources", headers={"host": host}) as reply:
        assert reply.status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8081",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example@127.0.0.1",
        "localhost:80@evil.example",
        "localhost/evil.example",
        "[x",
        "[::1]evil.example",
        "processor.evil.example",
    ],
)
async def test_a_foreign_name_that_resolves_here_is_refused(
    http: aiohttp.ClientSession, world: World, host: str
) -> None:
    for method, path in (("GET", "/debug/sources"), ("POST", "/debug/explain")):
        async with http.request(method, path, data=b"{}", headers={"host": host}) as reply:
            assert reply.status == 403
            assert "AIBRIX_EXTPROC_DEBUG_HOSTS" in (await reply.json())["error"]["message"]
    assert world.asked == []


async def test_a_request_without_a_host_is_refused(server: DebugServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /debug/sources HTTP/1.0\r\n\r\n")
    assert b" 403 " in await reader.readline()
    writer.close()


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", ""],
)
async def test_what_a_form_of_any_page_can_post_is_refused(
    http: aiohttp.ClientSession, world: World, content_type: str
) -> None:
    headers = {"content-type": content_type}
    async with http.post("/debug/explain", data=b"{}", headers=headers) as reply:
        assert reply.status == 415
        assert "application/json" in (await reply.json())["error"]["message"]
    assert world.asked == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
async def test_what_a_browser_sends_for_another_site_is_refused(
    http: aiohttp.ClientSession, world: World, headers: dict[str, str]
) -> None:
    async with http.post("/debug/explain", data=b"{}", headers=headers) as reply:
        assert reply.status == 403
    async with http.get("/debug/sources", headers=headers) as reply:
        assert reply.status == 403
    assert world.asked == []


async def test_a_page_of_this_port_may_ask(
    server: DebugServer, http: aiohttp.ClientSession
) -> None:
    headers = {"origin": f"http://127.0.0.1:{server.port}", "sec-fetch-site": "same-origin"}
    async with http.post("/debug/explain", data=b"{}", headers=headers) as reply:
        assert reply.status == 200


async def test_a_script_of_another_site_is_not_told_that_it_may_ask(
    http: aiohttp.ClientSession,
) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "*"}
    async with http.options("/debug/explain", headers=asked) as reply:
        assert reply.status == 405
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]


async def test_every_reply_may_neither_be_framed_nor_kept(http: aiohttp.ClientSession) -> None:
    for path in ("/debug/sources", "/nothing"):
        async with http.get(path) as reply:
            assert reply.headers["x-frame-options"] == "DENY"
            assert reply.headers["cache-control"] == "no-store"
            assert reply.headers["x-content-type-options"] == "nosniff"


async def test_an_address_in_use_is_told_by_the_name_of_the_variable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = DebugServer(Settings(debug_address=f"127.0.0.1:{taken.getsockname()[1]}"), [])
        with pytest.raises(SettingsError, match="AIBRIX_EXTPROC_DEBUG_ADDRESS"):
            await server.start()
    await server.close()


async def test_unless_told_otherwise_only_this_machine_can_reach_it() -> None:
    assert Settings().debug_address == "127.0.0.1:8081"
