"""The null run, with the real client against its own upstream."""

import sys

import aiohttp
import pytest

from aibrix_extproc.loadtest import ceiling
from aibrix_extproc.loadtest.client import ChatClient
from aibrix_extproc.loadtest.talk import Style
from aibrix_extproc.stack.processes import Processes
from aibrix_extproc.workloads.generated import WORKLOADS, Shape

SHAPE = Shape(sessions=5, prefix_tokens=900, turn_tokens=50, output_tokens=3, turns=2)


@pytest.mark.parametrize("letters", [1, 20_000])
async def test_the_null_upstream_answers_as_an_engine_would_with_as_many_chunks(
    letters: int,
) -> None:
    command = (sys.executable, "-m", "aibrix_extproc.loadtest.null_upstream", "7")
    with Processes() as processes:
        upstream = processes.spawn("null", command)
        url = f"http://{(await upstream.first_line())['address']}"
        async with aiohttp.ClientSession() as session:
            client = ChatClient(session, url)
            for _ in range(3):
                outcome = await client.chat("m", [{"role": "user", "content": "x" * letters}], 7)
                assert outcome.error is None
                assert len(outcome.text_s) == outcome.answer_tokens == 7


@pytest.mark.parametrize("name", ["shared-prefix", "multi-turn"])
async def test_a_null_run_sends_the_sessions_again_and_again_for_its_time(name: str) -> None:
    sessions = WORKLOADS[name](SHAPE, 1)
    async with aiohttp.ClientSession() as session:
        found = await ceiling.measure(session, sessions, Style("m"), 4, duration_s=0.2)
    assert found.errors == 0
    assert found.chunks == 4
    assert found.requests >= 32  # each of those at once sends one, whatever the time
    assert found.duration_s >= 0.2
    assert found.requests_per_s == found.requests / found.duration_s
