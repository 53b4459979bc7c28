"""The admin pages of a running processor, the bounds it keeps, and how it is told to end."""

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from aibrix_extproc.stack.start import Server, start_server, write_endpoints
from tests.e2e.beside import MODES, Wiring, another_envoy
from tests.e2e.stack import Stack, gateway
from tests.e2e.watching import (
    MATCHED,
    PICKED,
    caught_up,
    counted,
    explain,
    not_serving,
    serving,
    sources,
    text,
)
from tests.support import eventually_async, free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
LIMIT_BYTES = 100_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    environment = {
        "AIBRIX_EXTPROC_MAX_INFLIGHT_BYTES": str(LIMIT_BYTES),
        "AIBRIX_EXTPROC_DECISION_LOG_SHARE": "1",
    }
    async with gateway(engines=3, environment=environment) as stack:
        yield stack


async def test_what_is_explained_is_what_then_happens(stack: Stack) -> None:
    known, longer, unknown = text("x"), f"{text('x')} {text('y')}", text("z")
    await stack.complete(known)
    await caught_up(stack)
    for prompt, reusable in ((known, 288), (longer, 288), (unknown, 0)):
        page = await explain(stack, prompt)
        best = page["candidates"][0]
        reply = await stack.complete(prompt)
        assert best["reusable_tokens"] == reusable
        assert int(reply.headers[MATCHED]) == reply.cached_tokens == reusable
        assert reply.json()["usage"]["prompt_tokens"] == page["prompt_tokens"]
        if reusable:
            assert reply.pod == best["pod"].removeprefix("default/")
            assert reply.headers["routing-strategy"] == page["strategy"] == "prefix-cache"
        await caught_up(stack)


async def test_a_decision_is_found_by_the_id_that_the_client_was_told(stack: Stack) -> None:
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    reply = await stack.complete("a secret word", headers={"traceparent": traceparent})
    await stack.complete("another one")
    (found,) = await stack.debug(f"/debug/decisions?request_id={reply.headers['request-id']}")
    assert found["pod"] == f"default/{reply.pod}"
    assert found["traceparent"] == traceparent
    assert found["prompt_tokens"] == reply.json()["usage"]["prompt_tokens"]
    assert (found["candidates"], len(found["top"])) == (3, 3)
    assert "secret" not in str(found)
    assert len(await stack.debug("/debug/decisions?limit=2")) == 2


async def test_a_share_of_the_decisions_is_logged_as_json_lines(stack: Stack) -> None:
    log_path = stack.servers[0].process.log_path
    ids = {(await stack.complete(f"logged {number}")).headers["request-id"] for number in range(3)}
    lines = [line for line in log_path.read_text().splitlines() if '"message":"decision"' in line]
    logged = {line["request_id"]: line for line in map(json.loads, lines)}
    assert ids <= logged.keys()
    assert {logged[one]["model"] for one in ids} == {"tiny"}


async def test_to_explain_reserves_nothing_and_counts_nothing(stack: Stack) -> None:
    await eventually_async(lambda: nothing_under_way(stack))
    before = await stack.metrics()
    for _ in range(10):
        page = await explain(stack, text("nothing"))
    assert [one["load"]["requests"] for one in page["candidates"]] == [0, 0, 0]
    assert [one["reusable_tokens"] for one in page["candidates"]] == [0, 0, 0]
    after = await stack.metrics()
    for name in ("aibrix_extproc_requests_total", "aibrix_extproc_prompt_tokens_total"):
        assert after[name] == before[name]


async def nothing_under_way(stack: Stack) -> bool:
    """Whether the streams of the requests before have ended: Envoy ends them after the answer."""
    page = await explain(stack, text("nothing"))
    return not any(one["load"]["requests"] for one in page["candidates"])


async def test_every_metric_of_a_running_processor_is_documented(stack: Stack) -> None:
    await stack.complete("so that there is something to count")
    documented = METRICS_PAGE.read_text()
    families = {name_of_family(name) for name in await stack.metrics()}
    assert len(families) > 30
    assert {name for name in families if f"`{name}" not in documented} == set()


async def test_sources_show_what_the_engines_have_sent(stack: Stack) -> None:
    await stack.complete(text("s"))
    await caught_up(stack)
    seen = await sources(stack)
    for engine in stack.engines:
        source = seen[engine.config.name]
        publisher = engine.ranks[0].publisher
        assert publisher is not None
        assert source["event_endpoint"] == f"tcp://127.0.0.1:{publisher.port}"
        assert (source["state"], source["usable"]) == ("EXACT", True)
        assert source["pending_bytes"] == 0
        assert (source["sequence"] is None) == (publisher.sequence == 0)


async def test_readiness_waits_for_the_first_sync_of_every_source(
    stack: Stack, tmp_path: Path
) -> None:
    path = tmp_path / "endpoints.yaml"
    silent = stack.endpoint(0, name="silent", address=f"127.0.0.1:{free_port()}")
    silent["kv_events"] = {"port": free_port(), "replay_port": free_port()}
    write_endpoints(path, [stack.endpoint(1), silent])
    file = {"AIBRIX_EXTPROC_ENDPOINTS_FILE": str(path)}
    server = await another_server(stack, "waits", wait_for="healthz", **file)
    assert await missing(stack, server) == ["first_sync_done"]
    assert not await serving(server.grpc_address)
    write_endpoints(path, [stack.endpoint(1)])
    await server.process.ready(stack.session, f"{server.admin_url}/readyz")
    await eventually_async(lambda: serving(server.grpc_address))
    server.process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
async def test_one_signal_drains_and_a_second_one_ends_it_at_once(
    stack: Stack, number: signal.Signals
) -> None:
    # Nobody waits for that long here.
    server = await another_server(stack, "leaves", AIBRIX_EXTPROC_PRE_STOP_DELAY="10m")
    server.process.signal(number)
    await eventually_async(lambda: not_serving(server.grpc_address))
    assert await missing(stack, server) == ["not_draining"]
    assert server.process.exit_code is None
    server.process.signal(number)
    assert await server.process.wait() == 0


async def test_two_signals_at_the_same_moment_end_it_at_once_too(stack: Stack) -> None:
    server = await another_server(stack, "leaves", AIBRIX_EXTPROC_PRE_STOP_DELAY="10m")
    # Stopped, so that it finds both when it goes on.
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        server.process.signal(number)
    assert await server.process.wait() == 0


async def test_ctrl_c_ends_an_idle_processor_without_a_trace_in_the_log(stack: Stack) -> None:
    server = await another_server(stack, "idle", AIBRIX_EXTPROC_PRE_STOP_DELAY="0")
    server.process.signal(signal.SIGINT)
    assert await server.process.wait() == 0
    assert "Traceback" not in server.process.log_path.read_text()


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_a_body_past_all_that_may_be_held_at_once_passes_on_without_a_pick(
    stack: Stack, wiring: Wiring
) -> None:
    gate = await another_envoy(stack, wiring)
    before = await counted(stack, "aibrix_extproc_passed_total", reason="inflight_bytes")
    reply = await gate.complete("large", user="u" * 3 * LIMIT_BYTES)
    assert reply.status == 200
    assert reply.pod is not None
    assert PICKED not in reply.headers
    after = await counted(stack, "aibrix_extproc_passed_total", reason="inflight_bytes")
    assert after == before + 1
    assert PICKED in (await gate.complete("small", user="u" * (LIMIT_BYTES // 2))).headers
    assert await counted(stack, "aibrix_extproc_inflight_body_bytes") == 0


def name_of_family(sample: str) -> str:
    """The metric that a sample belongs to."""
    for suffix in ("_bucket", "_count", "_sum", "_created"):
        sample = sample.removesuffix(suffix)
    return sample


async def another_server(
    stack: Stack, name: str, wait_for: str = "readyz", **environment: str
) -> Server:
    """One more processor, for the same pods and on ports of its own."""
    variables = stack.environment | environment
    return await start_server(stack.processes, stack.session, variables, name, wait_for)


async def missing(stack: Stack, server: Server) -> list[str]:
    """What `/readyz` waits for, with a status that says so."""
    async with stack.session.get(f"{server.admin_url}/readyz") as reply:
        page = await reply.json()
    assert reply.status == (503 if page["missing"] else 200)
    found: list[str] = page["missing"]
    return found
