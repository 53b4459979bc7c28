"""More requests than pods can begin in time: with a limit some are refused, and the others begin.

Times are compared with each other, never with a clock: both bursts run on the same machine.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from aibrix_extproc.fakes.config import EngineConfig, TimeModel
from tests.e2e.stack import Stack, gateway

LIMIT_S = 0.5
BURST = 24
ENGINES = [
    EngineConfig(
        name=f"engine-{number}",
        time=TimeModel(prefill_us_per_token=1000.0),
        max_num_batched_tokens=256,
    )
    for number in range(2)
]
"""A thousand prompt tokens a second, and about one prompt of this test in a step."""


@dataclass(frozen=True)
class Reply:
    status: int
    began_s: float
    """From its sending to the headers of its answer."""
    retry_after: str | None
    code: str | None


async def ask(stack: Stack, number: int) -> Reply:
    loop = asyncio.get_running_loop()
    words = " ".join(f"{number}w{i}" for i in range(80))
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": 1,
        "stream": True,
    }
    sent = loop.time()
    url = f"{stack.url}/v1/chat/completions"
    async with stack.session.post(url, json=body) as reply:
        began_s = loop.time() - sent
        refused = reply.status != 200
        code = (await reply.json())["error"]["code"] if refused else None
        await reply.read()
        return Reply(reply.status, began_s, reply.headers.get("retry-after"), code)


async def burst(stack: Stack, first: int) -> Sequence[Reply]:
    """So many at once, after some one by one, so that the engines' pace is known."""
    for number in range(first, first + 8):
        assert (await ask(stack, number)).status == 200
    return await asyncio.gather(*(ask(stack, first + 100 + number) for number in range(BURST)))


async def refusals(stack: Stack) -> float:
    return (await stack.metrics()).get("aibrix_extproc_overload_total", 0.0)


async def lever(stack: Stack, *, on: bool) -> None:
    url = f"{stack.servers[0].debug_url}/debug/levers/overload"
    async with stack.session.post(url, json={"on": on}) as reply:
        assert reply.status == 200


async def test_of_a_burst_beyond_capacity_some_are_refused_and_the_others_begin_sooner() -> None:
    environment = {"AIBRIX_EXTPROC_MAX_START_DELAY": "500ms"}
    async with gateway(engines=ENGINES, environment=environment) as stack:
        await lever(stack, on=False)
        without = await burst(stack, 1000)
        assert {reply.status for reply in without} == {200}
        await lever(stack, on=True)
        replies = await burst(stack, 2000)
        accepted = [reply for reply in replies if reply.status == 200]
        refused = [reply for reply in replies if reply.status != 200]
        assert {(reply.status, reply.code) for reply in refused} == {(429, "overloaded")}
        assert all(1 <= int(reply.retry_after or "") <= 60 for reply in refused)
        # At least what the pods can begin at once, and far from all.
        assert 2 <= len(accepted) <= BURST // 2
        slowest_s = max(reply.began_s for reply in without)
        assert max(reply.began_s for reply in accepted) < 0.7 * slowest_s
        assert await refusals(stack) >= len(refused)
        assert (await ask(stack, 3000)).status == 200


async def test_without_a_limit_which_is_the_default_nobody_is_refused() -> None:
    async with gateway(engines=ENGINES) as stack:
        replies = await asyncio.gather(*(ask(stack, number) for number in range(BURST)))
        assert {reply.status for reply in replies} == {200}
        assert await refusals(stack) == 0
