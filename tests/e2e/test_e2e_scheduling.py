"""What was known to be held when engines took requests, against the engines' own count."""

import asyncio
import json
from typing import Any

import pytest

from aibrix_extproc.fakes.config import EngineConfig, TimeModel
from aibrix_extproc.stack import scrape
from tests.e2e.stack import Reply, Stack, gateway
from tests.e2e.watching import begin_answer, caught_up, counted, text
from tests.support import eventually_async

GAP = "aibrix_extproc_scheduled_gap_tokens_total"
REQUESTS = "aibrix_extproc_scheduled_requests_total"
TURNS, AT_ONCE = 5, 6


def small(number: int) -> EngineConfig:
    """Too few blocks for what is under way, slow enough for queues, and heads as vLLM's."""
    time = TimeModel(prefill_us_per_token=30.0, decode_ms_per_token=1.0)
    return EngineConfig(name=f"engine-{number}", num_blocks=220, time=time, head_at_once=True)


async def converse(stack: Stack, system: str, name: str) -> None:
    messages: list[dict[str, Any]] = [{"role": "system", "content": text(system, 60)}]
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"{text(name, 40)} {turn} {name}{turn}"})
        usage = {"include_usage": True}
        reply = await stack.chat(messages, max_tokens=24, stream=True, stream_options=usage)
        assert reply.status == 200
        messages.append({"role": "assistant", "content": content(reply)})


def content(reply: Reply) -> str:
    """The text of a streamed answer."""
    chunks = [json.loads(data) for data in reply.events() if data != "[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def known(stack: Stack) -> tuple[float, float]:
    """Tokens of prompts, and of these those held at scheduling, over all processors."""
    sums = [0.0, 0.0]
    for server in stack.servers:

        async def settled(url: str = f"{server.admin_url}/metrics") -> bool:
            return (await scrape.samples(stack.session, url))[scrape.SCHEDULED_FOLLOWED] == 0

        await eventually_async(settled)
        found = await scrape.samples(stack.session, f"{server.admin_url}/metrics")
        sums[0] += found[scrape.SCHEDULED_PROMPT_TOKENS]
        sums[1] += found[scrape.SCHEDULED_MATCHED_TOKENS]
    return sums[0], sums[1]


@pytest.mark.parametrize("servers", [1, 2])
async def test_with_full_caches_and_replicas_it_is_within_a_point_of_the_engines_own(
    servers: int,
) -> None:
    environment = {"AIBRIX_EXTPROC_CONVERSATION_CACHE": "true"}
    engines = [small(number) for number in range(2)]
    async with gateway(engines=engines, servers=servers, environment=environment) as stack:
        for wave in range(2):
            names = (f"n{wave}{number}" for number in range(AT_ONCE))
            await asyncio.gather(*(converse(stack, f"s{wave}", name) for name in names))
        prompts, held = await known(stack)
        counts = [engine.ranks[0].scheduler.counts for engine in stack.engines]
        queried = sum(count.prefix_queries for count in counts)
        assert prompts == queried == sum(count.prompt_tokens for count in counts)
        reused = sum(count.prefix_hits for count in counts) / queried
        assert reused > 0.3
        assert abs(held / prompts - reused) <= 0.01


async def test_a_retry_to_another_pod_counts_by_what_that_pod_held() -> None:
    async with gateway(engines=2) as stack:
        first = await stack.complete(text("a"))
        await caught_up(stack)
        gone = next(e for e in stack.engines if e.config.name == first.pod)
        await gone.close()
        again = await stack.complete(text("a"))
        assert again.pod != first.pod
        assert again.cached_tokens == 0
        prompts, held = await known(stack)
        assert prompts > 600
        assert held == 0
        gap = await counted(stack, GAP, model="tiny", cause="other_pod", direction="less")
        assert gap > 256


async def test_a_client_that_leaves_before_its_answer_has_no_figure() -> None:
    slow = EngineConfig(name="engine-0", time=TimeModel(prefill_us_per_token=5_000.0))
    async with gateway(engines=[slow]) as stack:
        task = asyncio.create_task(begin_answer(stack, text("a")))

        async def waits() -> bool:
            return stack.engines[0].ranks[0].load > 0

        await eventually_async(waits)
        task.cancel()

        async def told() -> bool:
            return await counted(stack, REQUESTS, result="not_served") == 1

        await eventually_async(told)
        assert await counted(stack, scrape.SCHEDULED_FOLLOWED) == 0
