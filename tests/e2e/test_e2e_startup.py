"""Before the pods are known, and pods from Kubernetes: a real API conversation, real picks."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.stack import Stack, gateway
from tests.e2e.watching import (
    MATCHED,
    PICKED,
    caught_up,
    counted,
    depths,
    serving,
    sources,
    text,
)
from tests.fake_kube import FakeKube, kube_pod
from tests.support import eventually_async

PASSED = "aibrix_extproc_passed_total"
DISCOVERY_ERRORS = "aibrix_extproc_discovery_errors_total"


def kubernetes_alone(kube: FakeKube, kubeconfig: Path) -> dict[str, str]:
    """The environment of a processor that has no endpoints file, and this API server."""
    kubeconfig.write_text(
        json.dumps(
            {
                "clusters": [{"name": "fake", "cluster": {"server": kube.url}}],
                "users": [{"name": "nobody", "user": {}}],
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "nobody"}}],
                "current-context": "fake",
            }
        )
    )
    return {"KUBECONFIG": str(kubeconfig), "AIBRIX_EXTPROC_ENDPOINTS_FILE": ""}


def pod_object(stack: Stack, index: int, *, ready: bool = True) -> dict[str, Any]:
    """An engine as the API server shows it: its ports by label and by container port."""
    engine = stack.engines[index]
    labels = {
        "model.aibrix.ai/name": "tiny",
        "model.aibrix.ai/port": engine.address.rpartition(":")[2],
        "model.aibrix.ai/kv-events-enabled": "true",
    }
    ports = [
        {"name": "kv-events", "containerPort": engine.event_ports[0]},
        {"name": "kv-replay", "containerPort": engine.replay_ports[0]},
    ]
    name = engine.config.name
    return kube_pod(name, uid=name, ip="127.0.0.1", labels=labels, ports=ports, ready=ready)


async def test_requests_pass_on_until_the_pods_are_listed_and_are_picked_from_then_on(
    tmp_path: Path,
) -> None:
    kube = FakeKube().start()
    kube.list_status = 503
    environment = kubernetes_alone(kube, tmp_path / "config")
    try:
        async with gateway(engines=2, environment=environment, wait_for="healthz") as stack:
            for number in range(3):
                reply = await stack.complete(f"early {number}")
                assert reply.status == 200
                assert reply.pod is not None
                assert PICKED not in reply.headers
            assert await counted(stack, PASSED, reason="pods_not_listed") == 3
            assert (await stack.admin("/readyz"))["missing"] == ["first_sync_done", "pods_listed"]
            assert await readyz_status(stack) == 503
            assert not await serving(stack.servers[0].grpc_address)
            for index in range(2):
                kube.apply(pod_object(stack, index))
            kube.list_status = None
            await eventually_async(lambda: serving(stack.servers[0].grpc_address))
            assert await readyz_status(stack) == 200
            assert PICKED in (await stack.complete("late")).headers
            assert await counted(stack, PASSED, reason="pods_not_listed") == 3
    finally:
        kube.stop()


async def readyz_status(stack: Stack) -> int:
    async with stack.session.get(f"{stack.admin_url}/readyz") as reply:
        return reply.status


# -- pods from Kubernetes -------------------------------------------------------------------------

Cluster = tuple[Stack, FakeKube]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    kube = FakeKube().start()
    environment = kubernetes_alone(kube, tmp_path_factory.mktemp("kube") / "config")
    try:
        async with gateway(engines=2, environment=environment) as stack:
            yield stack, kube
    finally:
        kube.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(shared: Cluster) -> Cluster:
    """Both engines are ready pods, and the processor follows them."""
    stack, kube = shared
    for index in range(2):
        kube.apply(pod_object(stack, index))
    await eventually_async(lambda: candidates_are(stack, "engine-0", "engine-1"))
    await caught_up(stack)
    return shared


async def candidates_are(stack: Stack, *names: str) -> bool:
    return sorted(await depths(stack, "anything")) == sorted(names)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_prompt_goes_back_to_the_pod_of_kubernetes_that_holds_it(cluster: Cluster) -> None:
    stack, _ = cluster
    first = [await stack.complete(text(name)) for name in "abcd"]
    await caught_up(stack)
    for name, before in zip("abcd", first, strict=True):
        reply = await stack.complete(text(name))
        assert reply.pod == before.pod
        assert int(reply.headers[MATCHED]) == reply.cached_tokens == 288
    states = {source["state"] for source in (await sources(stack)).values()}
    assert states == {"EXACT"}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pod_made_unready_gets_no_request_and_a_deleted_one_is_forgotten(
    cluster: Cluster,
) -> None:
    stack, kube = cluster
    holder = str((await stack.complete(text("u"))).pod)
    other = {"engine-0": "engine-1", "engine-1": "engine-0"}[holder]
    await caught_up(stack)
    kube.apply(pod_object(stack, int(holder[-1]), ready=False))
    await eventually_async(lambda: candidates_are(stack, other))
    assert (await stack.complete(text("u"))).pod == other
    assert (await sources(stack))[holder]["placements"] >= 18
    kube.delete(f"default/{holder}")
    await eventually_async(lambda: sources_are(stack, other))
    assert (await stack.complete(text("u"))).pod == other


@pytest.mark.asyncio(loop_scope="module")
async def test_while_the_api_server_is_away_picks_go_on(cluster: Cluster) -> None:
    stack, kube = cluster
    first = await stack.complete(text("k"))
    await caught_up(stack)
    errors = (await stack.metrics()).get(DISCOVERY_ERRORS, 0)
    kube.stop()
    await eventually_async(lambda: discovery_fails(stack, errors))
    reply = await stack.complete(text("k"))
    assert reply.pod == first.pod
    assert int(reply.headers[MATCHED]) == reply.cached_tokens == 288
    assert await readyz_status(stack) == 200
    kube.start()
    kube.delete("default/engine-0")
    await eventually_async(lambda: sources_are(stack, "engine-1"))


async def sources_are(stack: Stack, *names: str) -> bool:
    return sorted(await sources(stack)) == sorted(names)


async def discovery_fails(stack: Stack, before: float) -> bool:
    return (await stack.metrics()).get(DISCOVERY_ERRORS, 0) > before
