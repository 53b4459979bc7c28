"""The steps of docs/migration.md, with a real Envoy wired as AIBrix wires it."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import pytest
import pytest_asyncio

from aibrix_extproc.stack.start import start_envoy
from tests.e2e.aibrix_gateway import GoPlugin, config
from tests.e2e.stack import Reply, Stack, gateway
from tests.envoy_binary import envoy_path

pytestmark = pytest.mark.asyncio(loop_scope="module")

STRATEGY = {"routing-strategy": "random"}


@dataclass
class Cluster:
    """Envoy with AIBrix's wiring: the Go plugin picks engine-1, our first processor is a shadow."""

    stack: Stack

    async def ask(
        self, step: str, headers: Mapping[str, str] | None = None, path: str = "/v1/completions"
    ) -> Reply:
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 2}
        return await self.stack.request(
            "POST", path, body=body, headers={"host": step, **(headers or {})}
        )

    async def shadowed(self) -> float:
        return (await self.stack.metrics()).get("aibrix_extproc_shadow_picks_total", 0.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    async with gateway(engines=2, servers=2) as stack:
        plugin = GoPlugin(pod=stack.engines[1].address)
        await plugin.start()
        url = f"{stack.servers[0].debug_url}/debug/levers/shadow"
        async with stack.session.post(url, json={"on": True}) as reply:
            assert reply.status == 200
        wired = config(
            plugin.address,
            *(server.grpc_address for server in stack.servers),
            [engine.address for engine in stack.engines],
        )
        stack.envoy = await start_envoy(
            stack.processes, stack.session, envoy_path(), wired, "aibrix"
        )
        yield Cluster(stack)
        await plugin.stop()


async def test_there_a_request_without_a_strategy_is_balanced_by_its_service(
    cluster: Cluster,
) -> None:
    picked = {(await cluster.ask("before", STRATEGY)).pod for _ in range(4)}
    balanced = {(await cluster.ask("before")).pod for _ in range(4)}
    assert picked == {"engine-1"}
    assert balanced == {"engine-0", "engine-1"}


async def test_a_shadow_ahead_of_the_plugin_records_picks_and_changes_none(
    cluster: Cluster,
) -> None:
    before = await cluster.shadowed()
    replies = [await cluster.ask("shadow", STRATEGY) for _ in range(4)]
    assert {reply.pod for reply in replies} == {"engine-1"}
    assert {reply.headers["x-from"] for reply in replies} == {"plugin"}
    balanced = {(await cluster.ask("shadow")).pod for _ in range(4)}
    assert balanced == {"engine-0", "engine-1"}
    assert await cluster.shadowed() - before == 8


async def test_a_shadow_behind_the_plugin_would_remove_its_pick(cluster: Cluster) -> None:
    """So the page says: ahead."""
    assert (await cluster.ask("shadow-last", STRATEGY)).status == 503
    assert (await cluster.ask("shadow-last")).status == 200


async def test_switched_every_request_is_picked_by_the_same_routes(cluster: Cluster) -> None:
    for headers in ({}, STRATEGY, {"target-pod": "192.0.2.1:9"}):
        reply = await cluster.ask("switched", headers)
        assert reply.status == 200
        assert reply.pod in {"engine-0", "engine-1"}
        assert "x-from" not in reply.headers
    assert (await cluster.ask("switched", path="/v1/embeddings")).pod is not None


async def test_what_is_not_picked_has_no_route_there(cluster: Cluster) -> None:
    """A body without a known model, on a path of AIBrix's reserved route."""
    reply = await cluster.stack.request(
        "POST", "/v1/rerank", body={"query": "x"}, headers={"host": "switched"}
    )
    assert reply.status >= 500
    assert reply.pod is None


async def test_back_again_the_plugin_decides_as_before(cluster: Cluster) -> None:
    assert (await cluster.ask("switched", STRATEGY)).status == 200
    reply = await cluster.ask("before", STRATEGY)
    assert (reply.pod, reply.headers["x-from"]) == ("engine-1", "plugin")
