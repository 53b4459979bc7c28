"""The processor is told to leave: nobody notices, and it does not wait for generations."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from aibrix_extproc.settings import BodyMode
from aibrix_extproc.stack.start import Server
from tests.e2e.stack import Stack, gateway
from tests.e2e.watching import (
    PACED,
    PICKED,
    PICKS,
    Post,
    SlowUpload,
    assert_whole,
    begin_answer,
    counted,
    held,
    not_serving,
    opened_post,
    serving,
    text,
    watch_health_closely,
)
from tests.support import eventually_async

COMPLETIONS = "/v1/completions"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("mode", "failure_mode_allow"),
    [(BodyMode.BUFFERED, True), (BodyMode.BUFFERED, False), (BodyMode.DUPLEX, False)],
    ids=["buffered", "buffered fail-closed", "duplex"],
)
async def test_a_drained_processor_leaves_before_the_answers_end_and_cuts_none_off(
    mode: BodyMode, failure_mode_allow: bool
) -> None:
    async with gateway(
        engines=PACED,
        body_mode=mode,
        failure_mode_allow=failure_mode_allow,
        environment={"AIBRIX_EXTPROC_PRE_STOP_DELAY": "1200ms"},
        edit=watch_health_closely,
    ) as stack:
        server = stack.servers[0]
        await eventually_async(lambda: serving(server.grpc_address))
        answers = [await begin_answer(stack, text(number, 20)) for number in range(4)]
        with held(stack):
            server.process.terminate()
            await eventually_async(lambda: not_serving(server.grpc_address))
            assert await serving(server.grpc_address, "liveness")
            await eventually_async(lambda: taken_out(stack))
            picked = await counted(stack, PICKS, outcome="picked")
            # There is no other processor to ask: Envoy asks the one that leaves.
            late = asyncio.create_task(stack.complete("late"))
            await eventually_async(lambda: counted_more(stack, picked))
            assert await server.process.wait() == 0
            assert not late.done()
        for reply in await asyncio.gather(*(answer.rest() for answer in answers)):
            assert_whole(reply)
        assert (await late).status == 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def duplex() -> AsyncIterator[tuple[Stack, Post]]:
    """One engine and one processor, which each test ends and the next one starts again."""
    environment = {
        "AIBRIX_EXTPROC_PRE_STOP_DELAY": "300ms",
        "AIBRIX_EXTPROC_DECISION_TIMEOUT": "2s",
    }
    with opened_post() as post:
        async with gateway(engines=1, body_mode=BodyMode.DUPLEX, environment=environment) as stack:
            yield stack, post


async def fresh(duplex: tuple[Stack, Post]) -> tuple[Stack, Post]:
    """The processor runs, Envoy has found it, and nothing is remembered of earlier requests."""
    stack, post = duplex
    if stack.servers[0].process.exit_code is not None:
        await stack.start_server(0)
    await eventually_async(lambda: answers(stack))
    post.bodies.clear()
    post.cut_off = 0
    return stack, post


async def drain(server: Server) -> None:
    server.process.terminate()


async def leave_at_once(server: Server) -> None:
    server.process.terminate()
    await eventually_async(lambda: not_serving(server.grpc_address))
    server.process.terminate()


async def die(server: Server) -> None:
    server.process.kill()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("end", [drain, leave_at_once, die])
async def test_in_duplex_no_engine_gets_a_part_of_a_body(
    duplex: tuple[Stack, Post], end: Callable[[Server], Awaitable[None]]
) -> None:
    stack, post = await fresh(duplex)
    post.hangs = lambda path: path == "/tokenize"
    undecided = asyncio.create_task(stack.complete(text("u", 9_000)))
    await eventually_async(lambda: post.waiting)
    body = json.dumps({"model": "tiny", "prompt": text("p", 20_000), "max_tokens": 1}).encode()
    upload = await SlowUpload.begin(stack, body, len(body) // 2)
    await eventually_async(lambda: holds(stack, 100_000))
    await end(stack.servers[0])
    assert (await upload.answer())[0] >= 500
    if end is drain:
        # Its body was there: the decision is made, without tokens.
        reply = await undecided
        assert reply.status == 200
        assert reply.json()["usage"]["prompt_tokens"] >= 9_000
    else:
        assert (await undecided).status >= 500
    post.answer_again()
    assert await stack.servers[0].process.wait() == (-signal.SIGKILL if end is die else 0)
    assert len(post.sizes(COMPLETIONS)) == (1 if end is drain else 0)
    assert post.cut_off == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_bodies_on_their_way_back_arrive_whole_or_not_at_all(
    duplex: tuple[Stack, Post],
) -> None:
    stack, post = await fresh(duplex)
    body = json.dumps({"model": "tiny", "prompt": "large", "user": "u" * 1_000_000}).encode()
    under_way = [
        asyncio.create_task(stack.request("POST", COMPLETIONS, data=body, headers=JSON))
        for _ in range(24)
    ]
    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    stack.servers[0].process.kill()
    replies = await asyncio.gather(*under_way)
    assert {reply.status for reply in replies} <= {200, *range(500, 600)}
    answered = [reply for reply in replies if reply.status == 200]
    assert 0 < len(answered) < len(replies)
    assert set(post.sizes(COMPLETIONS)) == {len(body)}


async def test_a_body_still_coming_in_buffered_goes_on_without_a_pick() -> None:
    environment = {
        "AIBRIX_EXTPROC_PRE_STOP_DELAY": "0",
        "AIBRIX_EXTPROC_DECISION_TIMEOUT": "100ms",
    }
    with opened_post() as post:
        async with gateway(engines=1, environment=environment) as stack:
            prompt = text("s", 9_000)
            body = json.dumps({"model": "tiny", "prompt": prompt, "max_tokens": 1}).encode()
            upload = await SlowUpload.begin(stack, body, len(body) // 2)
            await eventually_async(lambda: open_streams(stack))
            stack.servers[0].process.terminate()
            assert await stack.servers[0].process.wait() == 0
            await upload.send_rest()
            status, answer = await upload.answer()
            assert status == 200
            assert PICKED.encode() not in answer
            assert post.sizes(COMPLETIONS) == [len(body)]


async def taken_out(stack: Stack) -> bool:
    """Envoy knows the one processor to be unhealthy."""
    stats = await stack.envoy_stats("cluster.ext_proc.membership_healthy")
    return stats["cluster.ext_proc.membership_healthy"] == 0


async def counted_more(stack: Stack, before: float) -> bool:
    return await counted(stack, PICKS, outcome="picked") > before


async def answers(stack: Stack) -> bool:
    return (await stack.complete("ready?")).status == 200


async def holds(stack: Stack, size_bytes: int) -> bool:
    return await counted(stack, "aibrix_extproc_inflight_body_bytes") >= size_bytes


async def open_streams(stack: Stack) -> bool:
    return await counted(stack, "aibrix_extproc_streams") > 0
