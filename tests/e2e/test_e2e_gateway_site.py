"""Real processors behind the Envoy that Envoy Gateway makes of envoy/gateway (each policy by
itself: test_e2e_gateway.py), and the endpoint picker as Envoy AI Gateway wires it.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aibrix_extproc.settings import BodyMode
from aibrix_extproc.stack import envoy_config
from aibrix_extproc.stack.envoy_config import ORIGINAL_DST
from aibrix_extproc.stack.start import start_envoy
from tests.certificates import Authority
from tests.e2e.beside import DESTINATION, added, samples
from tests.e2e.stack import Stack, gateway
from tests.e2e.watching import PICKED, text
from tests.envoy_binary import envoy_path
from tests.manifests import gateway_envoy, kustomize
from tests.manifests.crds import NEWEST
from tests.manifests.deployed import DEPLOY
from tests.manifests.gateway_sets import AIBRIX, BASE, Set
from tests.support import eventually_async

Json = dict[str, Any]
Edit = Callable[[Json], None]

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20


def deployed() -> dict[str, str]:
    """What deploy/kubernetes sets that the policies count on."""
    (settings,) = (o for o in kustomize.render(DEPLOY / "default") if o["kind"] == "ConfigMap")
    name = "AIBRIX_EXTPROC_MAX_BODY_BYTES"
    return {name: settings["data"][name]}


def through(one: Set) -> Edit:
    """Envoy Gateway's configuration in place of the static one, with the same addresses."""

    def edit(config: Json) -> None:
        clusters = ("ext_proc", "engines")
        processors, engines = (list(hosts(envoy_config.cluster(config, n))) for n in clusters)
        config.clear()
        config.update(gateway_envoy.config(one.xds(NEWEST), processors, engines))

    return edit


def hosts(cluster: Json) -> Iterator[str]:
    for locality in cluster["load_assignment"]["endpoints"]:
        for host in locality["lb_endpoints"]:
            address = host["endpoint"]["address"]["socket_address"]
            yield f"{address['address']}:{address['port_value']}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[Stack]:
    """Two processors, as deploy/kubernetes sets them, and three engines."""
    async with gateway(engines=3, servers=2, environment=deployed(), edit=through(BASE)) as stack:
        yield stack


async def beside(site: Stack, one: Set, edit: Edit | None = None) -> Stack:
    """The same behind an Envoy of its own, which asks the first processor."""
    processors, engines = [site.servers[0].grpc_address], [e.address for e in site.engines]
    config = gateway_envoy.config(one.xds(NEWEST), processors, engines)
    if edit is not None:
        edit(config)
    envoy = await start_envoy(site.processes, site.session, envoy_path(), config, one.name)
    return replace(site, envoy=envoy)


@pytest.mark.parametrize("one", [BASE, AIBRIX], ids=lambda one: one.name)
async def test_prompts_meet_their_prefix_and_picks_are_known_to_be_honoured(
    site: Stack, one: Set
) -> None:
    stack = await beside(site, one)
    before = await samples(stack, "aibrix_extproc_picks_total")
    for number in range(3):
        first = await stack.complete(text(f"{one.name} {number}"))
        again = await stack.complete(text(f"{one.name} {number}"))
        assert (first.status, again.status) == (200, 200)
        assert again.pod == first.pod
        assert again.cached_tokens > 0
    after = await samples(stack, "aibrix_extproc_picks_total")
    assert added(before, after) == {("honoured",): 6}


async def test_the_processors_own_413_comes_before_envoys(site: Stack) -> None:
    # Of a model that nobody serves: 15 MiB of prompt take a fake engine seconds.
    fits = await site.complete("x" * (15 * MIB - 4096), model="none")
    assert (fits.status, fits.error["code"]) == (404, "model_not_found")
    for too_many in (15 * MIB, 17 * MIB):
        reply = await site.complete("x" * too_many)
        assert (reply.status, reply.error["code"]) == (413, "request_too_large")
        assert "AIBRIX_EXTPROC_MAX_BODY_BYTES" in reply.error["message"]


async def test_a_body_that_does_not_say_its_length_is_cut_off_by_envoy(site: Stack) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b"x" * MIB

    reply = await site.request("POST", "/v1/completions", data=chunks())
    assert (reply.status, reply.headers["content-type"]) == (413, "text/plain")


async def test_processors_that_hang_cost_the_message_timeout_and_no_request(site: Stack) -> None:
    def impatient(config: Json) -> None:
        processor = gateway_envoy.ext_proc(gateway_envoy.manager_of(config))
        assert processor["messageTimeout"] == "2s"
        processor["messageTimeout"] = "0.2s"

    stack = await beside(site, BASE, impatient)
    assert PICKED in (await stack.complete("first")).headers
    server = site.servers[0]
    server.process.signal(signal.SIGSTOP)
    try:
        for number in range(3):
            reply = await stack.complete(f"{number}")
            assert reply.status == 200
            assert PICKED not in reply.headers
    finally:
        server.process.signal(signal.SIGCONT)

    async def decides() -> bool:
        return PICKED in (await stack.complete("again")).headers

    await eventually_async(decides)


async def test_a_replica_killed_under_load_fails_no_request(site: Stack) -> None:
    statuses: list[int] = []

    async def client(number: int) -> None:
        for turn in range(15):
            statuses.append((await site.complete(text(f"{number} {turn}"))).status)
            if len(statuses) == 30:
                site.servers[1].process.kill()

    await asyncio.gather(*(client(number) for number in range(8)))
    assert statuses == [200] * 120


# -- as Envoy AI Gateway wires an InferencePool ----------------------------------------------------


def as_ai_gateway(config: Json) -> None:
    """Its filter and its clusters, as its source has them; envoy/gateway/README.md says which."""
    processor = envoy_config.ext_proc(config)
    processor["processing_mode"] = {
        "request_header_mode": "SEND",
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        "request_trailer_mode": "SEND",
        "response_header_mode": "SEND",
        "response_body_mode": "FULL_DUPLEX_STREAMED",
        "response_trailer_mode": "SEND",
    }
    processor["failure_mode_allow"] = False
    del processor["grpc_service"]["retry_policy"], processor["allow_mode_override"]
    del processor["response_attributes"], processor["metadata_options"]
    tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    envoy_config.cluster(config, "ext_proc")["transport_socket"] = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": tls, "common_tls_context": {"validation_context": {}}},
    }
    engines = envoy_config.cluster(config, "engines")
    engines["original_dst_lb_config"]["http_header_name"] = DESTINATION
    hosts_ = envoy_config.connection_manager(config)["route_config"]["virtual_hosts"]
    for route in hosts_[0]["routes"]:
        for header in route["match"].get("headers", ()):
            header["name"] = header["name"].replace("target-pod", DESTINATION)


def pool_settings(folder: Path) -> dict[str, str]:
    pair = Authority(folder, "authority").issue("picker")
    return {
        "AIBRIX_EXTPROC_GRPC_TLS_CERT": str(pair.cert),
        "AIBRIX_EXTPROC_GRPC_TLS_KEY": str(pair.key),
        "AIBRIX_EXTPROC_ALTERNATIVES": "1",
    }


async def test_an_inference_pool_is_served_over_tls_and_without_its_picker_by_nobody(
    tmp_path: Path,
) -> None:
    async with gateway(
        engines=2,
        template=ORIGINAL_DST,
        body_mode=BodyMode.DUPLEX,
        environment=pool_settings(tmp_path),
        edit=as_ai_gateway,
    ) as stack:
        first = await stack.complete(text("pool"))
        usage = {"include_usage": True}
        again = await stack.complete(text("pool"), stream=True, stream_options=usage)
        assert (first.status, again.status) == (200, 200)
        assert again.pod == first.pod
        assert again.cached_tokens > 0
        assert again.events()[-1] == "[DONE]"
        assert (await stack.complete("x" * (2 * MIB))).status != 413

        stack.servers[0].process.kill()
        reply = await stack.complete(text("pool"))
        assert reply.status >= 500
        assert reply.pod is None
