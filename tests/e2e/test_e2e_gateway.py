"""What each policy of envoy/gateway asks of Envoy, shown by a real Envoy that runs the xDS which
Envoy Gateway makes of it (tests/data/gateway).

Processor and engines are stubs that do what a test says (test_e2e_gateway_site.py: the real ones).
Time-outs are shortened where a test would wait for them (test_gateway_xds.py: the shipped ones).
"""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

import pytest

from aibrix_extproc.extproc.messages import PREFERENCE_HEADERS
from aibrix_extproc.stack.processes import free_port
from tests.manifests import gateway_envoy
from tests.manifests.crds import NEWEST
from tests.manifests.gateway_envoy import ENGINES, EXT_PROC, PROCESSOR
from tests.manifests.gateway_sets import AIBRIX, BASE, PATCHED, Set
from tests.support import eventually_async
from tests.unit.envoy_stub import Rig, StubEngine, StubProcessor
from tests.unit.envoy_stub import rig as stub_rig

Json = dict[str, Any]
Edit = Callable[[Json], None]

DESTINATION = "x-gateway-destination-endpoint"
STEERING = {"target-pod", DESTINATION, "x-data-parallel-rank"}
MIB = 1 << 20


def rig(
    one: Set = BASE, replicas: int = 1, edit: Edit | None = None
) -> AbstractAsyncContextManager[Rig]:
    def config(processors: list[StubProcessor], engines: list[StubEngine]) -> Json:
        made = gateway_envoy.config(
            one.xds(NEWEST),
            [processor.address for processor in processors[:replicas]],
            [engine.address for engine in engines],
        )
        if edit is not None:
            edit(made)
        return made

    return stub_rig(config)


def pick(rig: Rig, *addresses: str) -> None:
    """What the processors set: one pod, and all in order."""
    for processor in (rig.processor, rig.replica):
        processor.headers = {"target-pod": addresses[0], DESTINATION: ",".join(addresses)}


def received(rig: Rig) -> list[int]:
    """How many requests each engine has had."""
    return [len(engine.requests) for engine in rig.engines]


# -- ClientTrafficPolicy: bufferLimit, earlyRequestHeaders ---------------------------------------


async def test_bodies_up_to_the_limit_are_decided_and_arrive_whole() -> None:
    async with rig() as r:
        pick(r, r.engines[2].address)
        for size in (300_000, 15 * MIB, 16 * MIB):
            assert await r.post(data=b"x" * size) == (200, "engine-2")
        assert r.engines[2].bodies == [300_000, 15 * MIB, 16 * MIB]


async def test_a_body_above_the_limit_is_a_413_that_reaches_nobody() -> None:
    async with rig() as r:
        assert (await r.post(data=b"x" * (16 * MIB + 70_000)))[0] == 413
        assert received(r) == [0, 0, 0]


async def test_uploads_skip_the_processor_and_its_limit() -> None:
    async with rig() as r:
        form = {"content-type": "Multipart/form-data; boundary=b"}
        path = "/v1/audio/transcriptions"
        assert (await r.post(path, data=b"x" * (20 * MIB), headers=form))[0] == 200
        assert [n for engine in r.engines for n in engine.bodies] == [20 * MIB]
        assert r.processor.seen == []


@pytest.mark.parametrize("path", ["/metrics", "/reset_prefix_cache", "/v1x"])
async def test_what_else_an_engine_answers_has_no_route(path: str) -> None:
    async with rig() as r:
        assert (await r.post(path))[0] == 404
        assert received(r) == [0, 0, 0]


@pytest.mark.parametrize("down", [False, True], ids=["processor up", "processor down"])
@pytest.mark.parametrize("one", [BASE, AIBRIX], ids=lambda one: one.name)
async def test_a_clients_own_destination_never_arrives(one: Set, down: bool) -> None:
    async with rig(one) as r:
        if down:
            await r.processor.stop()
        spoofed = {"Target-Pod": r.engines[0].address, "X-Data-Parallel-Rank": "1"}
        spoofed[DESTINATION.title()] = r.engines[0].address
        form = spoofed | {"content-type": "multipart/form-data; boundary=b"}
        for _ in range(12):
            assert (await r.post(headers=spoofed))[0] == 200
            assert (await r.post(data=b"x", headers=form))[0] == 200
        assert all(STEERING.isdisjoint(headers) for headers in r.received)
        assert all(STEERING.isdisjoint(headers) for headers in r.processor.seen)
        assert len(r.engines[0].requests) < 24, "the client chose the pod"
        assert bool(r.processor.seen) is not down


@pytest.mark.parametrize("down", [False, True], ids=["processor up", "processor down"])
async def test_aibrixs_wiring_is_no_open_proxy(down: bool) -> None:
    async with rig(AIBRIX) as r:
        if down:
            await r.processor.stop()
        trap = StubEngine("trap")
        await trap.start()
        try:
            for _ in range(4):
                assert (await r.post(headers={"target-pod": trap.address}))[1] != "trap"
            assert trap.requests == []
        finally:
            await trap.stop()


# -- EnvoyExtensionPolicy: failOpen, messageTimeout, processingMode, metadata ----------------------


def impatient(config: Json) -> None:
    gateway_envoy.ext_proc(gateway_envoy.manager_of(config))["messageTimeout"] = "0.1s"


async def test_a_processor_that_hangs_is_passed_by_after_the_message_timeout() -> None:
    async with rig(edit=impatient) as r:
        r.processor.stalled = True
        assert [(await r.post())[0] for _ in range(3)] == [200] * 3
        assert len(r.processor.seen) == 3
        assert sum(received(r)) == 3


async def test_a_processor_that_is_away_is_passed_by() -> None:
    async with rig(BASE) as r:
        await r.processor.stop()
        for _ in range(30):
            assert (await r.post())[0] == 200
        assert sum(received(r)) == 30
        assert all(received(r)), "the fallback is least request: everybody gets some"


async def test_the_processor_sees_headers_before_the_body_and_hears_who_served() -> None:
    async with rig() as r:
        pick(r, r.engines[1].address)
        assert await r.post() == (200, "engine-1")
        assert r.processor.served_by == [r.engines[1].address]
        told = r.processor.modes[0]
        names = told.DESCRIPTOR.fields_by_name["request_body_mode"].enum_type.values_by_number
        assert names[told.request_body_mode].name == "BUFFERED"
        assert names[told.response_body_mode].name == "NONE"


async def test_who_served_is_told_after_all_retries() -> None:
    async with rig() as r:
        dead, other, alive = r.engines
        await dead.stop()
        pick(r, dead.address, alive.address, other.address)
        assert await r.post() == (200, alive.name)
        assert r.processor.served_by == [alive.address]


def hurried(config: Json) -> None:
    grpc_service = gateway_envoy.ext_proc(gateway_envoy.manager_of(config))["grpcService"]
    assert grpc_service["timeout"] == "10s"
    grpc_service["timeout"] = "0.05s"


async def test_an_answer_may_take_longer_than_the_timeout_of_the_grpc_service() -> None:
    """Envoy Gateway writes one of 10 s, which no policy can change: a stream lives on beyond it."""
    async with rig(edit=hurried) as r:
        pick(r, r.engines[0].address)
        r.engines[0].gate = asyncio.Event()
        answer = asyncio.create_task(r.post())
        await eventually_async(lambda: r.engines[0].requests)
        await asyncio.sleep(0.2)
        r.engines[0].gate.set()
        assert await answer == (200, "engine-0")
        assert r.processor.served_by == [r.engines[0].address], "the stream was ended before"


async def test_the_access_log_says_what_was_picked_and_how_long_the_processor_took() -> None:
    async with rig() as r:
        pick(r, r.engines[0].address)
        await r.post()
        text = await eventually_async(lambda: r.envoy.access_log.read_text().strip())
        line = json.loads(text.splitlines()[-1])
        assert line["upstream"] == line["picked"] == r.engines[0].address
        assert line["attempts"] == 1
        assert line["ext_proc"]


# -- EnvoyExtensionPolicy: backendSettings ---------------------------------------------------------


@pytest.mark.parametrize("one", [BASE, PATCHED], ids=lambda one: one.name)
async def test_a_replica_that_dies_costs_no_request(one: Set) -> None:
    async with rig(one, replicas=2) as r:
        pick(r, r.engines[0].address)
        await asyncio.gather(*(r.post() for _ in range(20)))
        assert r.replica.seen
        assert r.processor.seen
        before = len(r.processor.seen)
        await r.replica.stop()
        replies = await asyncio.gather(*(r.post() for _ in range(60)))
        assert [status for status, _ in replies] == [200] * 60
        decided = len(r.processor.seen) - before
        print(f"{one.name}: {decided} of 60 decided")
        # Only the patches keep a retry from the dead replica.
        assert decided == 60 if one is PATCHED else decided >= 54


def checked_often(config: Json) -> None:
    """Health checks every 50 ms, also before the first request: a minute without the patches."""
    for name in (PROCESSOR, ENGINES):
        (check,) = gateway_envoy.cluster(config, name)["healthChecks"]
        assert check["noTrafficInterval"] == check["interval"]
        check |= {"noTrafficInterval": "0.05s", "interval": "0.05s", "timeout": "2s"}


async def stat(rig: Rig, name: str) -> int:
    """One of Envoy's numbers, by its whole name."""
    async with rig.session.get(f"{rig.envoy.admin_url}/stats?format=json&filter=^{name}$") as reply:
        (found,) = (await reply.json(content_type=None))["stats"]
    return int(found["value"])


async def becomes(rig: Rig, name: str, wanted: int) -> None:
    async def is_it() -> bool:
        return await stat(rig, name) == wanted

    await eventually_async(is_it)


async def test_a_replica_that_is_not_ready_is_not_asked() -> None:
    async with rig(PATCHED, replicas=2, edit=checked_often) as r:
        r.replica.ready = False
        await becomes(r, f"cluster.{PROCESSOR}.membership_healthy", 1)
        for _ in range(6):
            await r.post()
        assert r.replica.seen == []
        assert len(r.processor.seen) == 6


# -- BackendTrafficPolicy: endpointOverride, its fallback, retry, time-outs ------------------------


async def test_the_picked_pod_gets_the_request() -> None:
    async with rig() as r:
        for engine in r.engines * 2:
            pick(r, engine.address)
            assert await r.post() == (200, engine.name)


async def test_a_dead_pick_is_followed_by_the_next_of_the_list() -> None:
    async with rig() as r:
        dead, other, alternative = r.engines
        await dead.stop()
        pick(r, dead.address, alternative.address, other.address)
        for _ in range(4):
            assert await r.post() == (200, alternative.name)


async def test_where_every_pick_is_dead_the_fallback_answers() -> None:
    async with rig() as r:
        first, alive, second = r.engines
        await first.stop()
        await second.stop()
        pick(r, first.address, second.address)
        assert await r.post() == (200, alive.name)


async def test_a_pick_that_envoy_does_not_know_goes_to_the_fallback() -> None:
    async with rig() as r:
        for nonsense in (f"127.0.0.1:{free_port()}", "not an address"):
            pick(r, nonsense)
            assert (await r.post())[0] == 200


async def test_the_fallback_leaves_out_a_pod_that_fails_its_health_check() -> None:
    async with rig(PATCHED, edit=checked_often) as r:
        await r.engines[1].stop()
        await becomes(r, f"cluster.{ENGINES}.membership_healthy", 2)
        for _ in range(12):
            assert (await r.post())[0] == 200
        assert await stat(r, f"cluster.{ENGINES}.upstream_rq_retry") == 0, "it was dialled"


async def test_a_request_that_an_engine_has_accepted_is_never_sent_again() -> None:
    async with rig() as r:
        first, *others = r.engines
        first.resets = True
        pick(r, first.address, *(engine.address for engine in others))
        assert (await r.post())[0] == 503
        assert received(r) == [1, 0, 0]


async def test_an_engines_own_503_is_the_answer() -> None:
    async with rig() as r:
        first, *others = r.engines
        first.status = 503
        pick(r, first.address, *(engine.address for engine in others))
        assert await r.post() == (503, "engine-0")
        assert received(r) == [1, 0, 0]


@contextmanager
def silent_host() -> Iterator[str]:
    """An address that takes no connection and refuses none: its queue is full."""
    with socket.socket() as full, socket.socket() as one, socket.socket() as two:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (one, two):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield f"127.0.0.1:{full.getsockname()[1]}"


async def test_a_pod_that_does_not_answer_is_given_up_after_the_connect_timeout() -> None:
    with silent_host() as silent:

        def edit(config: Json) -> None:
            engines = gateway_envoy.cluster(config, ENGINES)
            assert engines["connectTimeout"] == "1s"
            engines["connectTimeout"] = "0.1s"
            del engines["healthChecks"]
            host = engines["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"]
            host["address"]["socketAddress"]["portValue"] = int(silent.rpartition(":")[2])

        async with rig(edit=edit) as r:
            pick(r, silent, r.engines[1].address)
            assert await r.post() == (200, "engine-1")


# -- EnvoyPatchPolicy ------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [BASE, PATCHED, AIBRIX], ids=lambda one: one.name)
async def test_what_clients_may_choose_by_reaches_the_processor(one: Set) -> None:
    chosen = {name: f"a client's {name}" for name in PREFERENCE_HEADERS}
    async with rig(one) as r:
        assert (await r.post(headers=chosen))[0] == 200
        (seen,) = r.processor.seen
        assert chosen.items() <= seen.items()


@pytest.mark.parametrize("one", [BASE, PATCHED], ids=lambda one: one.name)
async def test_secrets_of_clients_reach_the_processor_only_without_the_patches(one: Set) -> None:
    async with rig(one) as r:
        secret = {"authorization": "Bearer s", "cookie": "a=b", "x-api-key": "s", "api-key": "s"}
        assert (await r.post(headers=secret))[0] == 200
        assert r.received[0].items() >= secret.items()
        assert secret.keys().isdisjoint(r.processor.seen[0]) is (one is PATCHED)


async def test_aibrixs_wiring_dials_what_the_processor_says() -> None:
    async with rig(AIBRIX) as r:
        for engine in r.engines * 2:
            pick(r, engine.address)
            assert await r.post() == (200, engine.name)
        assert r.processor.served_by == [engine.address for engine in r.engines * 2]


async def test_in_aibrixs_wiring_a_dead_pick_is_a_503_and_no_pick_goes_to_the_fallback() -> None:
    async with rig(AIBRIX) as r:
        pick(r, f"127.0.0.1:{free_port()}", r.engines[0].address)
        assert (await r.post())[0] == 503
        r.processor.headers = {}
        assert (await r.post())[0] == 200


async def test_the_filter_has_the_name_that_the_patches_and_the_access_log_give_it() -> None:
    async with rig() as r, r.session.get(f"{r.envoy.admin_url}/config_dump") as reply:
        assert EXT_PROC in await reply.text()
