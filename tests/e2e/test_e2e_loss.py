"""The processor dies, or stands still: answers live on, and so do new requests."""

import asyncio
import signal
import sys
from dataclasses import replace

import pytest

from aibrix_extproc.extproc.watchdog import EXIT_CODE
from aibrix_extproc.stack.envoy_config import ORIGINAL_DST, OVERRIDE_HOST
from tests.e2e.stack import Stack, gateway
from tests.e2e.watching import (
    MATCHED,
    PACED,
    PICKED,
    ask_together,
    assert_whole,
    begin_answer,
    caught_up,
    held,
    sources,
    text,
)
from tests.support import eventually_async

STALLS_ON_SIGUSR1 = """
import asyncio, signal, time, uvloop
from aibrix_extproc.app import App
from aibrix_extproc.settings import Settings

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, time.sleep, 60)
    return await App(Settings.from_environment()).run()

raise SystemExit(uvloop.run(main()))
"""


@pytest.mark.parametrize("template", [OVERRIDE_HOST, ORIGINAL_DST])
async def test_answers_survive_the_death_of_the_processor(template: str) -> None:
    async with gateway(engines=PACED, template=template) as stack:
        answers = [await begin_answer(stack, text(number, 20)) for number in range(4)]
        with held(stack):
            stack.servers[0].process.kill()
        for reply in await asyncio.gather(*(answer.rest() for answer in answers)):
            assert_whole(reply)
            assert PICKED in reply.headers
        fresh = await stack.complete("anything")
        assert PICKED not in fresh.headers
        if template == OVERRIDE_HOST:
            assert fresh.status == 200
            assert fresh.pod in {"engine-0", "engine-1"}
        else:
            assert fresh.status == 503
            assert fresh.pod is None


async def test_a_restarted_processor_knows_again_what_the_engines_hold() -> None:
    async with gateway(engines=2) as stack:
        prompts = [text(number) for number in range(4)]
        first = await ask_together(stack, [stack.complete(prompt) for prompt in prompts])
        assert {reply.pod for reply in first} == {"engine-0", "engine-1"}
        await caught_up(stack)
        before = await sources(stack)
        stack.servers[0].process.kill()
        await stack.start_server(0)
        after = await sources(stack)
        assert [after[name]["state"] for name in sorted(after)] == ["EXACT", "EXACT"]
        for name in before:
            assert after[name]["placements"] == before[name]["placements"] > 0
        await picks_again(stack)
        for prompt, reply in zip(prompts, first, strict=True):
            again = await stack.complete(prompt)
            assert again.pod == reply.pod
            assert int(again.headers[MATCHED]) == again.cached_tokens > 256


async def test_a_processor_that_stands_still_ends_itself_and_costs_no_request() -> None:
    environment = {"AIBRIX_EXTPROC_WATCHDOG_TIMEOUT": "500ms"}
    # Longer than the test: only the watchdog can end the wait of the request.
    async with gateway(engines=PACED, environment=environment, message_timeout_s=60) as stack:
        await one_that_can_stall(stack)
        answers = [await begin_answer(stack, text(number, 20)) for number in range(4)]
        with held(stack):
            stack.servers[0].process.signal(signal.SIGUSR1)
            waits = asyncio.create_task(stack.complete("anything"))
            assert await stack.servers[0].process.wait() == EXIT_CODE
        for reply in await asyncio.gather(*(answer.rest() for answer in answers)):
            assert_whole(reply)
        fresh = await waits
        assert fresh.status == 200
        assert PICKED not in fresh.headers


async def picks_again(stack: Stack) -> None:
    """Envoy may need a moment to connect to a processor that came back."""

    async def picked() -> bool:
        reply = await stack.complete("anything")
        assert reply.status == 200
        return PICKED in reply.headers

    await eventually_async(picked)


async def one_that_can_stall(stack: Stack) -> None:
    """Replace the processor by one whose event loop stands still at SIGUSR1."""
    old = stack.servers[0]
    old.process.kill()
    process = stack.processes.spawn(
        "stalls", [sys.executable, "-c", STALLS_ON_SIGUSR1], stack.environment | old.addresses
    )
    await process.ready(stack.session, f"{old.admin_url}/readyz")
    stack.servers[0] = replace(old, process=process)
    await picks_again(stack)
