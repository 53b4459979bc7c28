"""Pods come, go and restart, and caches are emptied: what is predicted stays what engines reuse."""

import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aibrix_extproc.fakes.publisher import EventPublisher
from tests.e2e.stack import Reply, Stack, gateway
from tests.e2e.watching import (
    MATCHED,
    PICKED,
    caught_up,
    counted,
    depths,
    explain,
    sources,
    text,
)
from tests.support import eventually_async

EDITS = itertools.count(1)
"""Numbers of the edits of the endpoints file: each pod of the file carries the last one."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Stack]:
    """Predictions outlive every test: only what empties a source can void one."""
    async with gateway(engines=3, environment={"AIBRIX_EXTPROC_PREDICTION_TTL": "10m"}) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def stack(shared: Stack) -> Stack:
    """Three engines, every one of them running, listed, ready and followed."""
    for index, engine in enumerate(shared.engines):
        if not engine.ranks:
            await shared.start_engine(index)
    everyone = await explain(shared, "anything", filter="pod in (engine-0,engine-1,engine-2)")
    if len(everyone.get("candidates", ())) < 3:
        await list_pods(shared, 0, 1, 2)
    await caught_up(shared)
    return shared


async def test_a_pod_that_dies_costs_no_request(stack: Stack) -> None:
    prompt = text("a")
    await known_to(stack, 0, prompt)
    await stack.engines[0].close()
    reply = await stack.complete(prompt)
    assert reply.status == 200
    assert reply.headers[PICKED] == "engine-0"
    assert reply.pod in {"engine-1", "engine-2"}


async def test_an_engine_that_restarts_is_known_to_hold_nothing(stack: Stack) -> None:
    prompt = text("b")
    await known_to(stack, 0, prompt)
    await stack.engines[0].close()
    await stack.start_engine(0)
    await caught_up(stack)
    assert await predicted_and_reused(stack, 0, prompt) == (0, 0)
    await caught_up(stack)
    assert await predicted_and_reused(stack, 0, prompt) == (288, 288)


async def test_an_emptied_cache_is_known_to_hold_nothing(stack: Stack) -> None:
    prompt = text("c")
    await known_to(stack, 0, prompt)
    url = f"http://{stack.engines[0].address}/reset_prefix_cache"
    async with stack.session.post(url) as reply:
        assert (await reply.json())["success"]
    await ask_pod(stack, 0, "the next step tells of it")
    await caught_up(stack)
    assert await predicted_and_reused(stack, 0, prompt) == (0, 0)
    assert (await sources(stack))["engine-0"]["state"] == "EXACT"


async def test_batches_that_were_lost_on_the_way_are_asked_for_again(stack: Stack) -> None:
    gaps = await counted(stack, "aibrix_kv_gaps_total", pod="default/engine-0")
    publisher(stack, 0).drop_next(1)
    await ask_pod(stack, 0, text("d"))
    # What arrives shows that something is missing.
    await ask_pod(stack, 0, text("dd", 20))
    await caught_up(stack)
    assert await counted(stack, "aibrix_kv_gaps_total", pod="default/engine-0") == gaps + 1
    assert (await depths(stack, text("d")))["engine-0"] == 18
    assert (await sources(stack))["engine-0"]["state"] == "EXACT"


async def test_a_batch_that_nobody_can_bring_back_leaves_no_false_hit(stack: Stack) -> None:
    await known_to(stack, 0, text("e"))
    publisher(stack, 0).burn_next(1)
    await ask_pod(stack, 0, text("ee", 20))
    await ask_pod(stack, 0, text("eee", 20))
    await caught_up(stack)
    # It may have been a removal: the engine still holds the prompt, and nobody says so.
    assert await predicted_and_reused(stack, 0, text("e")) == (0, 288)
    assert (await sources(stack))["engine-0"]["state"] == "PARTIAL"
    await known_to(stack, 0, text("f"))
    assert await predicted_and_reused(stack, 0, text("f")) == (288, 288)


async def test_a_pod_that_is_taken_off_the_list_gets_no_request_and_is_forgotten(
    stack: Stack,
) -> None:
    await known_to(stack, 0, text("g"))
    await list_pods(stack, 1, 2)
    assert sorted(await sources(stack)) == ["engine-1", "engine-2"]
    assert (await stack.complete(text("g"))).pod in {"engine-1", "engine-2"}
    assert sorted(await depths(stack, text("g"))) == ["engine-1", "engine-2"]


async def test_a_pod_that_comes_is_known_with_all_that_it_holds(stack: Stack) -> None:
    await list_pods(stack, 1, 2)
    prompt = {"model": "tiny", "prompt": text("h"), "max_tokens": 1}
    url = f"http://{stack.engines[0].address}/v1/completions"
    async with stack.session.post(url, json=prompt) as reply:
        assert reply.status == 200
    await list_pods(stack, 0, 1, 2)
    await caught_up(stack)
    reply_of_gateway = await stack.complete(text("h"))
    assert reply_of_gateway.pod == "engine-0"
    assert int(reply_of_gateway.headers[MATCHED]) == reply_of_gateway.cached_tokens == 288


async def test_a_pod_that_is_not_ready_gets_no_request_and_is_remembered(stack: Stack) -> None:
    await known_to(stack, 0, text("i"))
    await list_pods(stack, 0, 1, 2, unready=0)
    assert (await stack.complete(text("i"))).pod in {"engine-1", "engine-2"}
    assert (await sources(stack))["engine-0"]["placements"] >= 18
    await list_pods(stack, 0, 1, 2)
    assert await predicted_and_reused(stack, 0, text("i")) == (288, 288)


# -- what the tests above do to the pods --------------------------------------------------------


def publisher(stack: Stack, index: int) -> EventPublisher:
    found = stack.engines[index].ranks[0].publisher
    assert found is not None
    return found


async def list_pods(stack: Stack, *indices: int, unready: int | None = None) -> None:
    """Write the endpoints file, and wait until the processor has read it."""
    edit = next(EDITS)
    stack.list_pods(
        *(
            stack.endpoint(
                index,
                labels={"pod": f"engine-{index}", "edit": str(edit)},
                ready=index != unready,
            )
            for index in indices
        )
    )

    async def read() -> bool:
        page = await explain(stack, "anything", filter=f"edit={edit}")
        return "candidates" in page

    await eventually_async(read)


async def ask_pod(stack: Stack, index: int, prompt: str) -> Reply:
    """Send a prompt to one pod, whatever the others hold."""
    reply = await stack.complete(prompt, headers={"external-filter": f"pod=engine-{index}"})
    assert reply.status == 200, reply.body
    assert reply.pod == f"engine-{index}"
    return reply


async def known_to(stack: Stack, index: int, prompt: str) -> None:
    """One pod holds the prompt, and the processor knows."""
    await ask_pod(stack, index, prompt)
    await caught_up(stack)
    assert (await depths(stack, prompt))[f"engine-{index}"] > 0


async def predicted_and_reused(stack: Stack, index: int, prompt: str) -> tuple[int, int]:
    """Tokens of a prompt that one pod is expected to reuse, and those that it does."""
    reply = await ask_pod(stack, index, prompt)
    return int(reply.headers[MATCHED]), reply.cached_tokens
