"""The admin port over real HTTP: each page, and each way to get an error."""

import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from aibrix_extproc.admin.server import AdminServer
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.unit.admin.admin_rig import World, stats


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
    settings = Settings(admin_address="127.0.0.1:0", debug_address="127.0.0.1:18081")
    server = AdminServer(settings, metrics, registry, world, lambda: world.conditions, "core")
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


async def test_an_unknown_path_is_an_error_that_lists_the_pages(
    http: aiohttp.ClientSession,
) -> None:
    async with http.get("/nothing") as reply:
        assert reply.status == 404
        error = (await reply.json())["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert "/readyz" in error["message"]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_nothing_is_shown_or_changed_here_and_the_debug_port_is_named(
    http: aiohttp.ClientSession, method: str
) -> None:
    for path in ("/debug/sources", "/debug/explain", "/debug/levers/shadow", "/debug/"):
        async with http.request(method, path, json={}) as reply:
            assert reply.status == 404
            assert "127.0.0.1:18081" in (await reply.json())["error"]["message"]


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
