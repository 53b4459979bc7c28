"""The admin port over real HTTP: each page, and each way to get an error."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from aibrix_extproc.admin.server import AdminServer
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.errors import ModelNotFound, SettingsError
from aibrix_extproc.extproc.decides import RouteRequest
from aibrix_extproc.index.results import IndexStats
from aibrix_extproc.kvevents.manager import SourceView
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings

VIEW = SourceView(
    source=7,
    pod="default/vllm-0",
    rank=0,
    model="llama",
    state=None,
    usable=False,
    sequence=41,
    lag_s=0.25,
    placements=1000,
    pending_bytes=0,
    event_endpoint="tcp://10.0.0.1:5557",
)


def stats(**by_medium: int) -> IndexStats:
    return IndexStats(
        sources=2,
        blocks=900,
        placements=sum(by_medium.values()),
        orphans=3,
        bytes=123_456,
        by_medium=by_medium,
        full_sources=frozenset(),
        per_source={},
    )


@dataclass
class World:
    """What the server asks, settable by a test."""

    views_now: tuple[SourceView, ...] = (VIEW,)
    stats_now: IndexStats = field(default_factory=lambda: stats(GPU=1000))
    conditions: dict[str, bool] = field(default_factory=lambda: {"pods_listed": True})
    asked: list[RouteRequest] = field(default_factory=list)
    error: Exception | None = None

    def views(self) -> tuple[SourceView, ...]:
        return self.views_now

    def stats(self) -> IndexStats:
        return self.stats_now

    async def explain(self, request: RouteRequest) -> dict[str, Any]:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        return {"outcome": "picked", "reason": "prefix"}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def server(world: World, metrics: Metrics) -> AsyncIterator[AdminServer]:
    registry = Registry(metrics)
    registry.replace(
        [Pod("default", "vllm-0", "uid", "10.0.0.1:8000", "llama", adapters=("tales",))]
    )
    settings = Settings(admin_address="127.0.0.1:0", max_body_bytes=1000)
    server = AdminServer(
        settings, metrics, registry, world, world, world, lambda: world.conditions, "core"
    )
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def http(server: AdminServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        yield session


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values…) → value, as Prometheus reads the page."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_health_is_ok_while_the_process_answers(
    http: aiohttp.ClientSession, world: World
) -> None:
    world.conditions = {"pods_listed": False}
    async with http.get("/healthz") as reply:
        assert (reply.status, await reply.text()) == (200, "ok\n")


async def test_readiness_says_what_is_missing(http: aiohttp.ClientSession, world: World) -> None:
    world.conditions = {"pods_listed": True, "first_sync_done": False}
    async with http.get("/readyz") as reply:
        assert reply.status == 503
        page = await reply.json()
    assert page["missing"] == ["first_sync_done"]
    assert page["conditions"] == world.conditions

    world.conditions = {"pods_listed": True, "first_sync_done": True}
    async with http.get("/readyz") as reply:
        assert reply.status == 200
        page = await reply.json()
    assert page["ready"] is True
    assert page["index_backend"] == "core"


async def test_metrics_are_readable_by_prometheus(
    http: aiohttp.ClientSession, metrics: Metrics
) -> None:
    metrics.passed.labels("other_path").inc(3)
    async with http.get("/metrics") as reply:
        assert reply.status == 200
        assert reply.headers["content-type"].startswith("text/plain; version=")
        found = samples(await reply.text())
    assert found["aibrix_extproc_passed_total", "other_path"] == 3


async def test_a_scrape_reads_the_index_anew(http: aiohttp.ClientSession, world: World) -> None:
    async with http.get("/metrics") as reply:
        found = samples(await reply.text())
    assert found["aibrix_kv_index_placements", "GPU"] == 1000
    assert found["aibrix_kv_index_bytes",] == 123_456
    assert found["aibrix_kv_index_blocks",] == 900
    assert found["aibrix_kv_index_orphans",] == 3
    assert found["aibrix_kv_index_sources",] == 2

    world.stats_now = stats(CPU=5)
    async with http.get("/metrics") as reply:
        found = samples(await reply.text())
    assert found["aibrix_kv_index_placements", "CPU"] == 5
    assert ("aibrix_kv_index_placements", "GPU") not in found


async def test_an_engine_cannot_add_series_without_end_by_its_media(
    http: aiohttp.ClientSession, world: World
) -> None:
    world.stats_now = stats(**{f"medium-{i}": 100 - i for i in range(50)})
    async with http.get("/metrics") as reply:
        found = samples(await reply.text())
    series = {key[1]: value for key, value in found.items() if key[0].endswith("placements")}
    assert len(series) == 17
    assert sum(series.values()) == world.stats_now.placements
    assert series["medium-0"] == 100


async def test_models_are_listed_as_openai_lists_them(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/models") as reply:
        page = await reply.json()
    assert page["object"] == "list"
    assert [model["id"] for model in page["data"]] == ["llama", "tales"]
    assert {key for model in page["data"] for key in model} == {
        "id",
        "object",
        "created",
        "owned_by",
    }


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
        headers={"Routing-Strategy": "random", "External-Filter": "a=b", "X-Other": "1"},
    ):
        (asked,) = world.asked
    assert asked.path == "/v1/completions"
    assert asked.headers == {"routing-strategy": "random", "external-filter": "a=b"}


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
    server: AdminServer, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    handled = asyncio.Event()
    read = server._body

    async def body(request: web.Request) -> bytes:
        try:
            return await read(request)
        finally:
            handled.set()

    server._body = body  # type: ignore[method-assign]
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /debug/explain HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
    await writer.drain()
    writer.close()
    await asyncio.wait_for(handled.wait(), 10)
    async with http.get("/healthz") as reply:
        assert reply.status == 200
    assert "failed" not in caplog.text


async def test_an_unknown_path_is_an_error_that_lists_the_pages(
    http: aiohttp.ClientSession,
) -> None:
    async with http.get("/nothing") as reply:
        assert reply.status == 404
        error = (await reply.json())["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert "/debug/sources" in error["message"]


async def test_a_wrong_method_is_an_error_that_names_the_right_one(
    http: aiohttp.ClientSession,
) -> None:
    async with http.get("/debug/explain") as reply:
        assert reply.status == 405
        assert reply.headers["allow"] == "POST"
        assert "POST" in (await reply.json())["error"]["message"]


async def test_a_page_that_fails_is_a_500_and_a_line_in_the_log(
    http: aiohttp.ClientSession, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.error = RuntimeError("broken")
    with caplog.at_level(logging.ERROR, "aibrix_extproc.admin.server"):
        async with http.post("/debug/explain", data=b'{"prompt": "secret words"}') as reply:
            assert reply.status == 500
            page = json.dumps(await reply.json())
    assert "broken" not in page
    assert "broken" in caplog.text
    assert "secret words" not in caplog.text
    async with http.get("/healthz") as reply:
        assert reply.status == 200


async def test_an_address_in_use_is_a_settings_error_that_names_the_variable(
    world: World, metrics: Metrics
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = AdminServer(
            Settings(admin_address=address),
            metrics,
            Registry(metrics),
            world,
            world,
            world,
            dict,
            "core",
        )
        with pytest.raises(SettingsError, match="AIBRIX_EXTPROC_ADMIN_ADDRESS"):
            await server.start()
    await server.close()


async def test_a_closed_server_no_longer_listens(server: AdminServer) -> None:
    port = server.port
    await server.close()
    await server.close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    with pytest.raises(RuntimeError):
        _ = server.port
