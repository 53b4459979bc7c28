"""Levers moved while real requests go through a real Envoy."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from aibrix_extproc.stack.start import write_endpoints
from tests.e2e.beside import MODES, Wiring, another_envoy
from tests.e2e.stack import Stack, gateway
from tests.e2e.watching import MATCHED, PICKED, caught_up, counted, depths, sources, text
from tests.support import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    async with gateway(engines=2) as stack:
        yield stack


async def pull(stack: Stack, lever: str, **body: Any) -> Any:
    """Move a lever of the first processor; its page."""
    url = f"{stack.servers[0].debug_url}/debug/levers/{lever}"
    async with stack.session.post(url, json=body) as reply:
        page = await reply.json()
        assert reply.status == 200, page
    return page


async def test_a_pod_that_is_out_gets_no_request_until_it_is_back(stack: Stack) -> None:
    prompt = text("out")
    first = await stack.complete(prompt)
    await caught_up(stack)
    assert (await stack.complete(prompt)).pod == first.pod
    assert first.pod is not None
    await pull(stack, "pod-out", pod=f"default/{first.pod}", out=True)
    assert await counted(stack, "aibrix_extproc_lever", lever="pod-out") == 1
    others = {(await stack.complete(prompt)).pod for _ in range(3)}
    assert first.pod not in others
    # A listing that says the same again does not bring it back.
    entries = [stack.endpoint(0), stack.endpoint(1)]
    write_endpoints(stack.endpoints_path, [*entries, stack.endpoint(1) | relabelled()])
    await eventually_async(lambda: lists(stack, 3))
    assert (await stack.complete(prompt)).pod != first.pod
    stack.list_pods(*entries)
    await eventually_async(lambda: lists(stack, 2))
    await caught_up(stack)
    # Its cache was tracked all the while.
    assert (await depths(stack, prompt)).keys() == others
    await pull(stack, "pod-out", pod=f"default/{first.pod}", out=False)
    assert (await depths(stack, prompt))[first.pod] >= 18
    assert await counted(stack, "aibrix_extproc_lever", lever="pod-out") == 0


def relabelled() -> dict[str, Any]:
    """One more pod, which nobody can reach, for another model."""
    return {"name": "more", "model": "other", "address": "127.0.0.1:9", "kv_events": False}


async def lists(stack: Stack, pods: int) -> bool:
    return len(await sources(stack)) == pods


async def test_while_event_sync_is_off_the_index_is_not_believed_and_on_again_it_is(
    stack: Stack,
) -> None:
    prompt = text("off")
    reply = await stack.complete(prompt)
    await caught_up(stack)
    assert (await depths(stack, prompt))[reply.pod or ""] >= 18
    await pull(stack, "event-sync", on=False)
    assert set((await depths(stack, prompt)).values()) == {0}
    assert await counted(stack, "aibrix_kv_index_placements", medium="GPU") == 0
    assert await counted(stack, "aibrix_prefix_cache_indexer_status", indexer_type="sync") == 0
    assert (await stack.complete(text("meanwhile"))).status == 200
    page = await pull(stack, "event-sync", on=True)
    assert page["levers"]["event-sync"]["at_default"]
    await caught_up(stack)
    assert (await depths(stack, prompt))[reply.pod or ""] >= 18
    again = await stack.complete(prompt)
    assert (again.pod, again.headers[MATCHED]) == (reply.pod, str(again.cached_tokens))


async def test_one_source_is_synced_anew_and_holds_what_it_held(stack: Stack) -> None:
    reply = await stack.complete(text("anew"))
    await caught_up(stack)
    before = await depths(stack, text("anew"))
    await pull(stack, "resync", pod=f"default/{reply.pod}", rank=0)
    await caught_up(stack)
    assert await depths(stack, text("anew")) == before


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_in_shadow_mode_requests_go_on_without_a_pick_and_picks_are_counted(
    stack: Stack, wiring: Wiring
) -> None:
    gate = await another_envoy(stack, wiring)
    await pull(stack, "shadow", on=True)
    passed = await counted(stack, "aibrix_extproc_passed_total", reason="shadow")
    replies = [await gate.complete(text(f"shadow {number}")) for number in range(4)]
    await pull(stack, "shadow", on=False)
    assert all(reply.status == 200 and PICKED not in reply.headers for reply in replies)
    assert await counted(stack, "aibrix_extproc_passed_total", reason="shadow") == passed + 4
    would = [
        await counted(stack, "aibrix_extproc_shadow_picks_total", pod=f"default/engine-{number}")
        for number in range(2)
    ]
    assert sum(would) >= 4
    assert PICKED in (await gate.complete("not any more")).headers


async def test_the_log_level_changes_and_who_did_it_is_logged(stack: Stack) -> None:
    page = await pull(stack, "log-level", level="ERROR")
    assert page["levers"]["log-level"] == {"now": "ERROR", "default": "DEBUG", "at_default": False}
    await pull(stack, "log-level", level="DEBUG")
    log = stack.servers[0].process.log_path.read_text()
    assert "lever log-level: DEBUG → ERROR (by 127.0.0.1)" in log
    assert "lever log-level: ERROR → DEBUG (by 127.0.0.1)" in log
