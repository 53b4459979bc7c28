"""Two processors behind one Envoy: one may go at any time, under load, and no request fails."""

import asyncio
import signal
import time
from collections import Counter

import aiohttp
import pytest

from aibrix_extproc.fakes.config import EngineConfig, TimeModel
from tests.e2e.stack import Stack, gateway
from tests.e2e.watching import counted
from tests.support import eventually_async

RATE = 250
"""Requests per second, whatever becomes of those before them."""
BEFORE, AFTER = 80, 320
"""Requests sent before and after one processor goes."""

ENGINES = [
    EngineConfig(
        name=f"engine-{number}",
        time=TimeModel(decode_ms_per_token=5),
        debug_requests=BEFORE + AFTER + 10,
    )
    for number in range(2)
]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
async def test_one_of_two_processors_goes_under_load_and_nothing_fails(
    number: signal.Signals,
) -> None:
    environment = {"AIBRIX_EXTPROC_PRE_STOP_DELAY": "1s"}
    # A drain costs nothing even where Envoy fails what the processor leaves open (fail-closed).
    async with gateway(
        engines=ENGINES,
        servers=2,
        environment=environment,
        failure_mode_allow=number == signal.SIGKILL,
    ) as stack:
        await eventually_async(lambda: both_decide(stack))
        unpicked = await sent_without_a_pick(stack)
        tasks = await send(stack, BEFORE)
        gone = stack.servers[0].process
        gone.signal(number)
        under_way = sum(not task.done() for task in tasks)
        tasks += await send(stack, AFTER)
        outcomes = Counter(await asyncio.gather(*tasks))
        assert outcomes == {"answered": BEFORE + AFTER}
        unpicked = await sent_without_a_pick(stack) - unpicked
        if number == signal.SIGKILL:
            # Only what it was deciding as it died goes on without a pick.
            assert await gone.wait() == -signal.SIGKILL
            assert unpicked <= under_way
        else:
            assert await gone.wait() == 0
            assert unpicked == 0


async def both_decide(stack: Stack) -> bool:
    await ask(stack, 0)
    return all(
        [await counted(stack, "aibrix_extproc_requests_total", n, outcome="picked") for n in (0, 1)]
    )


async def send(stack: Stack, requests: int) -> list["asyncio.Task[str]"]:
    """Send at the steady rate; the requests, of which the last have just begun."""
    start_s = time.monotonic()
    tasks = []
    for number in range(requests):
        await asyncio.sleep(max(0.0, start_s + number / RATE - time.monotonic()))
        tasks.append(asyncio.create_task(ask(stack, number)))
    return tasks


async def ask(stack: Stack, number: int) -> str:
    """A short streamed answer: `answered` in full, or what else became of it."""
    body = {"model": "tiny", "prompt": f"question {number}", "max_tokens": 4, "stream": True}
    try:
        reply = await stack.request("POST", "/v1/completions", body=body)
    except aiohttp.ClientError as error:
        return repr(error)
    if reply.status != 200:
        return f"status {reply.status}: {reply.body[:80]!r}"
    return "answered" if reply.events()[-1] == "[DONE]" else "cut off"


async def sent_without_a_pick(stack: Stack) -> int:
    """Requests that reached the engines with no pod named, by the engines' own memory."""
    count = 0
    for engine in stack.engines:
        async with stack.session.get(f"http://{engine.address}/debug/requests") as reply:
            seen = (await reply.json())["requests"]
        count += sum("target-pod" not in request["headers"] for request in seen)
    return count
