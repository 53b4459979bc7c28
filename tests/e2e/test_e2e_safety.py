"""No client chooses where Envoy connects, and none learns or leaves more than it should."""

import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import pytest
import pytest_asyncio

from aibrix_extproc.stack import envoy_config
from aibrix_extproc.stack.envoy_config import Config
from aibrix_extproc.stack.processes import free_port
from aibrix_extproc.stack.start import start_server
from tests.e2e.beside import (
    BUFFERED,
    BY_METADATA,
    BY_ORIGINAL_DST,
    DEBUG_HEADERS,
    DESTINATION,
    DESTINATION_HEADERS,
    DUPLEX,
    EVERY_WIRING,
    MODES,
    Envoys,
    Wiring,
    added,
    samples,
    serves,
)
from tests.e2e.stack import Reply, Stack, gateway
from tests.e2e.upstream import Upstream, received, send_raw
from tests.fake_kube import kubeconfig

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
AS_JSON = {"content-type": "application/json"}

BY_OVERRIDE_HOST = (*MODES, *BY_METADATA)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trap() -> AsyncIterator[Upstream]:
    """What a client would reach if it could: it is no pod, and nobody has business there."""
    async with Upstream("trap") as upstream:
        yield upstream
        assert upstream.connections == 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods() -> AsyncIterator[list[Upstream]]:
    async with Upstream("mirror-0") as first, Upstream("mirror-1") as second:
        yield [first, second]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(pods: list[Upstream]) -> AsyncIterator[Envoys]:
    """Two mirrors behind a processor that tells nothing of its decisions."""
    environment = {"AIBRIX_EXTPROC_DEBUG_HEADERS": ""}
    async with gateway(engines=0, environment=environment) as stack:
        stack.list_pods(*(pod.endpoint() for pod in pods))
        await serves(stack, "mirror")
        yield Envoys(stack, pods=[pod.address for pod in pods])


@pytest.fixture(autouse=True)
def nothing_received(pods: list[Upstream]) -> None:
    for pod in pods:
        pod.received.clear()


# -- destinations of a client's own -----------------------------------------------------------

KNOWN = b'{"model": "mirror", "messages": [{"role": "user", "content": "x"}], "prompt": "x"}'
REQUESTS = {
    "picked": ("POST", CHAT, KNOWN, AS_JSON),
    "picked, completion": ("POST", "/v1/completions?x=1", KNOWN, AS_JSON),
    "picked, other path": ("POST", "/v1/embeddings", KNOWN, AS_JSON),
    "GET": ("GET", "/v1/files/7", b"", {}),
    "model unknown, other path": ("POST", "/v1/embeddings", b'{"model": "x"}', AS_JSON),
    "no model": ("POST", "/v1/embeddings", b'{"input": "x"}', AS_JSON),
    "no JSON": ("POST", "/v1/files", b"\x00\xff", AS_JSON),
    "text": ("POST", "/v1/files", b"x", {"content-type": "text/plain"}),
    "no body": ("DELETE", "/v1/files/7", b"", {}),
}
SKIPPING = {
    "form": ("POST", "/v1/audio", b"--b--", {"content-type": "multipart/form-data; boundary=b"}),
    "other root": ("POST", "/tokenize", KNOWN, AS_JSON),
    "other root, GET": ("GET", "/metrics", b"", {}),
}
"""What the shipped routes keep away from the processor: Envoy alone strips there."""


def spoofs(address: str) -> list[list[tuple[str, str]]]:
    """Ways to name a destination: all that may choose one, alone and in every odd spelling."""
    plain = [("target-pod", address), (DESTINATION, address), ("x-data-parallel-rank", "1")]
    odd = [
        ("Target-Pod", address),
        ("TARGET-POD", f"{address},{address}"),
        (DESTINATION.upper(), address),
        ("X-data-parallel-rank", "1"),
        ("x-envoy-original-dst-host", address),
        ("x-envoy-retry-on", "5xx"),
    ]
    return [plain, plain + odd]


async def spoofed(
    stack: Stack, request: tuple[str, str, bytes, Mapping[str, str]], victim: Upstream
) -> AsyncIterator[Reply]:
    """Send a request once for each way to name the victim; the answers."""
    method, path, body, headers = request
    for spoof in spoofs(victim.address):
        async with stack.session.request(
            method, stack.url + path, data=body or None, headers=[*headers.items(), *spoof]
        ) as reply:
            content = await reply.read()
        yield Reply(reply.status, {k.lower(): v for k, v in reply.headers.items()}, content)


def without_stripping(config: Config) -> None:
    """Take Envoy's own stripping away: what the processor's replies remove must do alone."""
    del envoy_config.connection_manager(config)["early_header_mutation_extensions"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unstripped(envoys: Envoys, pods: list[Upstream]) -> Envoys:
    return Envoys(envoys.stack, pods=[pod.address for pod in pods], edit=without_stripping)


def assert_clean(pods: list[Upstream], reply: Reply, picked: bool) -> None:
    """One pod has the request, and what it says of destinations is the processor's word."""
    [got] = received(pods)
    [pod] = [pod for pod in pods if pod.received]
    pod.received.clear()
    assert (reply.status, reply.pod) == (200, pod.name)
    assert "x-data-parallel-rank" not in got.headers
    if picked:
        assert got.headers["target-pod"] == pod.address
        known = {pod.address for pod in pods}
        assert set(got.headers[DESTINATION].split(",")) == known
    else:
        assert DESTINATION_HEADERS.isdisjoint(got.headers)


@pytest.mark.parametrize("wiring", BY_OVERRIDE_HOST, ids=str)
@pytest.mark.parametrize("request_", [*REQUESTS, *SKIPPING])
async def test_a_destination_of_a_clients_own_reaches_no_pod(
    envoys: Envoys, pods: list[Upstream], trap: Upstream, wiring: Wiring, request_: str
) -> None:
    stack = await envoys.by(wiring)
    async for reply in spoofed(stack, (REQUESTS | SKIPPING)[request_], trap):
        assert_clean(pods, reply, "picked" in request_)
    assert trap.connections == 0


@pytest.mark.parametrize("wiring", BY_OVERRIDE_HOST, ids=str)
@pytest.mark.parametrize("request_", REQUESTS)
async def test_the_processor_strips_destinations_where_envoy_does_not(
    unstripped: Envoys, pods: list[Upstream], trap: Upstream, wiring: Wiring, request_: str
) -> None:
    stack = await unstripped.by(wiring)
    async for reply in spoofed(stack, REQUESTS[request_], trap):
        assert_clean(pods, reply, "picked" in request_)
    assert trap.connections == 0


@pytest.mark.parametrize("wiring", BY_ORIGINAL_DST, ids=str)
@pytest.mark.parametrize("layers", ["as shipped", "the processor alone"])
async def test_original_dst_dials_no_address_that_a_client_names(
    envoys: Envoys,
    unstripped: Envoys,
    pods: list[Upstream],
    trap: Upstream,
    wiring: Wiring,
    layers: str,
) -> None:
    shipped = layers == "as shipped"
    stack = await (envoys if shipped else unstripped).by(wiring)
    for name, request in (REQUESTS | SKIPPING if shipped else REQUESTS).items():
        async for reply in spoofed(stack, request, trap):
            if "picked" in name:
                assert_clean(pods, reply, picked=True)
            else:
                assert (reply.status, reply.pod) == (503, None)
                assert received(pods) == []
            assert trap.connections == 0


async def test_a_header_hidden_in_a_trailer_or_a_second_request_is_none(
    envoys: Envoys, pods: list[Upstream], trap: Upstream
) -> None:
    stack = await envoys.by(BY_ORIGINAL_DST[0])
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nhost: gateway\r\nconnection: close, target-pod\r\n"
        f"target-pod: {trap.address}\r\ncontent-type: application/json\r\n"
        "transfer-encoding: chunked\r\ntrailer: target-pod\r\n\r\n"
    )
    status, _ = await send_raw(
        stack.url, head.encode(), b"2\r\n{}\r\n0\r\ntarget-pod: %s\r\n\r\n" % trap.address.encode()
    )
    assert status == 503
    assert trap.connections == 0
    assert received(pods) == []


# -- the processor is dead, or knows no pods yet ----------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dead(envoys: Envoys, pods: list[Upstream]) -> Envoys:
    """Envoys whose processor is gone; in BUFFERED they let requests pass, as shipped."""
    gone = replace(envoys.stack.servers[0], grpc_address=f"127.0.0.1:{free_port()}")
    stack = replace(envoys.stack, servers=[gone])
    return Envoys(stack, pods=[pod.address for pod in pods])


@pytest.mark.parametrize("request_", [*REQUESTS, *SKIPPING])
async def test_with_the_processor_dead_the_fallback_answers_and_clients_choose_nothing(
    dead: Envoys, pods: list[Upstream], trap: Upstream, request_: str
) -> None:
    stack = await dead.by(BUFFERED)
    async for reply in spoofed(stack, (REQUESTS | SKIPPING)[request_], trap):
        assert_clean(pods, reply, picked=False)
    assert trap.connections == 0


async def test_with_the_processor_dead_no_client_chooses_among_the_pods(
    dead: Envoys, pods: list[Upstream]
) -> None:
    stack = await dead.by(BUFFERED)
    for _ in range(12):
        async for reply in spoofed(stack, REQUESTS["picked"], pods[0]):
            assert reply.status == 200
    assert {bool(pod.received) for pod in pods} == {True}


@pytest.mark.parametrize("request_", [*REQUESTS, *SKIPPING])
async def test_with_the_processor_dead_original_dst_dials_nobody(
    dead: Envoys, pods: list[Upstream], trap: Upstream, request_: str
) -> None:
    stack = await dead.by(BY_ORIGINAL_DST[0])
    async for reply in spoofed(stack, (REQUESTS | SKIPPING)[request_], trap):
        assert (reply.status, reply.error["code"]) == (503, "service_unavailable")
    assert received(pods) == []
    assert trap.connections == 0


@pytest.mark.parametrize("wiring", [DUPLEX, BY_ORIGINAL_DST[1]], ids=str)
async def test_with_the_processor_dead_duplex_fails_and_sends_nothing_anywhere(
    dead: Envoys, pods: list[Upstream], trap: Upstream, wiring: Wiring
) -> None:
    stack = await dead.by(wiring)
    for request in REQUESTS.values():
        async for reply in spoofed(stack, request, trap):
            assert reply.status >= 500
    assert received(pods) == []
    assert trap.connections == 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unlisted(envoys: Envoys, pods: list[Upstream]) -> Envoys:
    """Envoys before a processor that has not heard of any pod: its Kubernetes does not answer."""
    folder = envoys.stack.processes.folder
    variables = envoys.stack.environment | {
        "AIBRIX_EXTPROC_ENDPOINTS_FILE": "",
        "KUBECONFIG": str(kubeconfig(folder, f"http://127.0.0.1:{free_port()}")),
    }
    stack = envoys.stack
    server = await start_server(stack.processes, stack.session, variables, "unlisted", "healthz")
    waiting = replace(stack, servers=[server])
    return Envoys(waiting, pods=[pod.address for pod in pods])


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_before_the_first_listing_requests_pass_and_clients_choose_nothing(
    unlisted: Envoys, pods: list[Upstream], trap: Upstream, wiring: Wiring
) -> None:
    stack = await unlisted.by(wiring)
    before = await samples(stack, "aibrix_extproc_passed_total")
    async for reply in spoofed(stack, REQUESTS["picked"], trap):
        if wiring in BY_ORIGINAL_DST:
            assert (reply.status, reply.error["code"]) == (503, "service_unavailable")
            assert received(pods) == []
        else:
            assert_clean(pods, reply, picked=False)
    assert trap.connections == 0
    after = await samples(stack, "aibrix_extproc_passed_total")
    assert added(before, after) == {("pods_not_listed",): len(spoofs(""))}


# -- what clients may choose ------------------------------------------------------------------

PREFER = {"routing-strategy": "random", "external-filter": "pod=mirror-1"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def distrusting(envoys: Envoys, pods: list[Upstream]) -> Envoys:
    """Envoys before a processor that takes no preferences from clients."""
    stack = envoys.stack
    variables = stack.environment | {"AIBRIX_EXTPROC_TRUST_CLIENT_HEADERS": "false"}
    server = await start_server(stack.processes, stack.session, variables, "distrusting")
    return Envoys(replace(stack, servers=[server]), pods=[pod.address for pod in pods])


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_strategy_and_filter_are_a_clients_to_choose(
    envoys: Envoys, pods: list[Upstream], wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    for _ in range(8):
        assert (await stack.complete("x", model="mirror", headers=PREFER)).pod == "mirror-1"
    assert {one.headers["routing-strategy"] for one in received(pods)} == {"random"}


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_where_clients_are_not_trusted_their_strategy_and_filter_do_not_count(
    distrusting: Envoys, pods: list[Upstream], wiring: Wiring
) -> None:
    stack = await distrusting.by(wiring)
    for number in range(24):
        reply = await stack.complete(f"{number}", model="mirror", headers=PREFER)
        assert reply.status == 200
    assert {bool(pod.received) for pod in pods} == {True}
    assert {one.headers["routing-strategy"] for one in received(pods)} == {"prefix-cache"}
    for nonsense in ({"routing-strategy": "fastest"}, {"external-filter": "(("}):
        assert (await stack.complete("x", model="mirror", headers=nonsense)).status == 200


# -- what clients are told --------------------------------------------------------------------


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_a_client_learns_nothing_of_the_decision_by_default(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    for reply in (
        await stack.complete("x", model="mirror"),
        await stack.complete("x", model="mirror", headers=PREFER),
        await stack.request("GET", "/v1/models"),
        await stack.chat("x", model="unheard of"),
    ):
        assert DEBUG_HEADERS.isdisjoint(reply.headers)
        assert DESTINATION not in reply.headers


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_client_and_pod_are_told_the_same_id_which_is_not_the_clients(
    envoys: Envoys, pods: list[Upstream], wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    mine = {"x-request-id": "mine"}
    replies = [await stack.complete("x", model="mirror", headers=mine) for _ in range(3)]
    told = [reply.headers["request-id"] for reply in replies]
    assert sorted(told) == sorted(one.headers["x-request-id"] for one in received(pods))
    assert len({uuid.UUID(one) for one in told}) == 3


def keeps_ids(config: Config) -> None:
    """Not an edge: the id of the proxy before this one is kept."""
    envoy_config.connection_manager(config)["preserve_external_request_id"] = True


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inner(envoys: Envoys, pods: list[Upstream]) -> Envoys:
    return Envoys(envoys.stack, pods=[pod.address for pod in pods], edit=keeps_ids)


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_an_id_that_envoy_keeps_reaches_pod_and_client(
    inner: Envoys, pods: list[Upstream], wiring: Wiring
) -> None:
    stack = await inner.by(wiring)
    mine = {"x-request-id": "trace/7 of mine"}
    reply = await stack.complete("x", model="mirror", headers=mine)
    assert reply.headers["request-id"] == "trace/7 of mine"
    assert received(pods)[0].headers["x-request-id"] == "trace/7 of mine"
    refused = await stack.chat("x", model="unheard of", headers=mine)
    assert refused.headers["request-id"] == "trace/7 of mine"


@pytest.mark.parametrize("wiring", MODES, ids=str)
@pytest.mark.parametrize("bad_id", ["x" * 129, "caf\xe9"], ids=["long", "not ASCII"])
async def test_an_id_that_is_too_long_or_not_printable_is_replaced(
    inner: Envoys, pods: list[Upstream], wiring: Wiring, bad_id: str
) -> None:
    stack = await inner.by(wiring)
    reply = await stack.complete("x", model="mirror", headers={"x-request-id": bad_id})
    told = reply.headers["request-id"]
    assert uuid.UUID(told)
    assert received(pods)[0].headers["x-request-id"] == told


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_no_prompt_and_no_secret_stands_in_a_log(
    envoys: Envoys, pods: list[Upstream], wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    secret = {"authorization": "Bearer opensesame"}
    await stack.complete("xyzzy-prompt", model="mirror", headers=secret)
    assert received(pods)[0].headers["authorization"] == "Bearer opensesame"
    await stack.request("POST", CHAT, data=b'{"model": "mirror", xyzzy-broken', headers=secret)
    await stack.chat([{"role": "user", "content": {"xyzzy": "wrong"}}], model="mirror")
    await stack.chat("xyzzy-unknown", model="unheard of", headers=secret)
    logs = "".join(path.read_text() for path in stack.processes.folder.glob("*serve*.log"))
    assert "serving on" in logs
    assert "xyzzy" not in logs
    assert "opensesame" not in logs
