"""gRPC health over a real channel, under every name that is asked for."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.unit.extproc.extproc_rig import Rig, rig

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READINESS = [
    "",
    "readiness",
    "envoy.service.ext_proc.v3.ExternalProcessor",
    "inference-extension",
]


async def status(r: Rig, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(r.channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    return int(reply.status)


@pytest.mark.parametrize("name", READINESS)
async def test_readiness_follows_what_it_is_told(name: str) -> None:
    async with rig() as r:
        assert await status(r, name) == NOT_SERVING
        await r.health.set_serving(True)
        assert await status(r, name) == SERVING
        await r.health.set_serving(False)
        assert await status(r, name) == NOT_SERVING


async def test_liveness_is_serving_while_the_process_lives() -> None:
    async with rig() as r:
        assert await status(r, "liveness") == SERVING
        await r.health.set_serving(False)
        assert await status(r, "liveness") == SERVING


async def test_once_it_leaves_it_is_never_ready_again() -> None:
    async with rig() as r:
        await r.health.set_serving(True)
        await r.health.leave()
        await r.health.set_serving(True)
        assert await status(r, "readiness") == NOT_SERVING
        assert await status(r, "liveness") == SERVING


async def test_a_watcher_is_told_of_the_change() -> None:
    async with rig() as r:
        stub = health_pb2_grpc.HealthStub(r.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == NOT_SERVING
        await r.health.set_serving(True)
        assert (await watch.read()).status == SERVING
        watch.cancel()


async def test_an_unknown_name_is_not_found() -> None:
    async with rig() as r:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await status(r, "someone-else")
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
