"""Through a real Envoy, a session stays with its pod, and its name is no way to name one."""

import base64
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
import pytest_asyncio

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.routing.rendezvous import Rendezvous
from aibrix_extproc.routing.types import Candidate
from aibrix_extproc.stack.start import start_server
from tests.e2e.beside import (
    BUFFERED,
    BY_ORIGINAL_DST,
    DESTINATION,
    EVERY_WIRING,
    MODES,
    Envoys,
    Wiring,
    added,
    samples,
    serves,
)
from tests.e2e.stack import gateway
from tests.e2e.upstream import Upstream, received

pytestmark = pytest.mark.asyncio(loop_scope="module")

BY_SESSION = {"routing-strategy": "session-affinity"}
FALLBACKS = "aibrix_extproc_strategy_fallback_total"
FEW = {
    # In duplex the end of a quick answer is not seen: its load is soon forgotten.
    "AIBRIX_EXTPROC_EXPECTED_TIME_PER_TOKEN": "1ms",
    "AIBRIX_EXTPROC_SESSION_LOAD_FLOOR": "100",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods() -> AsyncIterator[list[Upstream]]:
    mirrors = [Upstream(f"mirror-{number}") for number in range(4)]
    for mirror in mirrors:
        await mirror.start()
    yield mirrors
    for mirror in mirrors:
        await mirror.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(pods: list[Upstream]) -> AsyncIterator[Envoys]:
    async with gateway(engines=0, environment=FEW) as stack:
        stack.list_pods(*(pod.endpoint() for pod in pods))
        await serves(stack, "mirror")
        yield Envoys(stack, pods=[pod.address for pod in pods])


@pytest.fixture(autouse=True)
def nothing_received(pods: list[Upstream]) -> None:
    for pod in pods:
        pod.received.clear()


def order(session: str, pods: Sequence[Upstream]) -> list[Upstream]:
    """The pods in the order of a session, by their names alone."""
    candidates = [
        Candidate(number, Pod("default", pod.name, "", "", "mirror"))
        for number, pod in enumerate(pods)
    ]
    return [pods[one.source] for one in Rendezvous().order(session, candidates)]


def named(session: str) -> dict[str, str]:
    return BY_SESSION | {"x-session-id": session}


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_all_requests_of_a_session_reach_the_pod_that_it_belongs_to(
    envoys: Envoys, pods: list[Upstream], wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    seen = set()
    for number in range(8):
        session = f"session {number}"
        for turn in range(3):
            reply = await stack.complete(f"{turn}", model="mirror", headers=named(session))
            assert reply.pod == order(session, pods)[0].name
        seen.add(reply.pod)
    assert len(seen) > 1
    assert received(pods)[0].headers["routing-strategy"] == "session-affinity"
    assert {one.headers["x-session-id"] for one in received(pods)} >= {"session 0", "session 7"}


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_the_alternatives_are_the_next_pods_of_the_session(
    envoys: Envoys, pods: list[Upstream], wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    await stack.complete("x", model="mirror", headers=named("alice"))
    told = received(pods)[0].headers[DESTINATION]
    assert told == ",".join(pod.address for pod in order("alice", pods)[:3])


async def test_while_its_pod_is_gone_a_session_stays_with_its_second(
    envoys: Envoys, pods: list[Upstream]
) -> None:
    stack = await envoys.by(BUFFERED)
    first, second, *_ = order("alice", pods)
    await first.close()
    try:
        for _ in range(3):
            reply = await stack.complete("x", model="mirror", headers=named("alice"))
            assert (reply.status, reply.pod) == (200, second.name)
    finally:
        await first.start()
    reply = await stack.complete("x", model="mirror", headers=named("alice"))
    assert reply.pod == first.name


@pytest.mark.parametrize("wiring", [*MODES, *BY_ORIGINAL_DST], ids=str)
async def test_an_address_as_a_sessions_name_is_a_name_like_any_other(
    envoys: Envoys, pods: list[Upstream], wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    async with Upstream("stranger") as stranger:
        addresses = [pod.address for pod in (*pods, stranger)]
        encoded = [base64.b64encode(address.encode()).decode() for address in addresses]
        for session in (*addresses, *encoded, *(pod.name for pod in pods)):
            reply = await stack.complete("x", model="mirror", headers=named(session))
            assert reply.pod == order(session, pods)[0].name
        assert stranger.connections == 0


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_without_a_session_or_with_too_long_a_one_load_decides_and_is_counted(
    envoys: Envoys, pods: list[Upstream], wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    before = await samples(stack, FALLBACKS)
    for number in range(24):
        session = {"x-session-id": "x" * 257} if number % 2 else {}
        reply = await stack.complete("x", model="mirror", headers=BY_SESSION | session)
        assert reply.status == 200
    assert sum(bool(pod.received) for pod in pods) > 1
    assert added(before, await samples(stack, FALLBACKS)) == {
        ("no_session", "session-affinity"): 12,
        ("session_too_long", "session-affinity"): 12,
    }
    longest = "x" * 256
    reply = await stack.complete("x", model="mirror", headers=named(longest))
    assert reply.pod == order(longest, pods)[0].name


async def test_where_clients_are_not_trusted_their_sessions_do_not_count(
    envoys: Envoys, pods: list[Upstream]
) -> None:
    stack = envoys.stack
    variables = stack.environment | {
        "AIBRIX_EXTPROC_TRUST_CLIENT_HEADERS": "false",
        "ROUTING_ALGORITHM": "session-affinity",
    }
    server = await start_server(stack.processes, stack.session, variables, "distrusting")
    distrusting = Envoys(replace(stack, servers=[server]), pods=[pod.address for pod in pods])
    behind = await distrusting.by(BUFFERED)
    for _ in range(24):
        reply = await behind.complete("x", model="mirror", headers=named("alice"))
        assert reply.status == 200
    assert sum(bool(pod.received) for pod in pods) > 1
    assert await samples(behind, FALLBACKS) == {("no_session", "session-affinity"): 24}
