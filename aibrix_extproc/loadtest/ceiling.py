"""The null run: how many requests in a second the generator and its client could send at most.

Owns the run of the same sessions against an upstream that answers at once, as fast as it goes.
What the ceiling means for a result stands in the report.
"""

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import Final

import aiohttp

from aibrix_extproc.loadtest.client import ChatClient
from aibrix_extproc.loadtest.report.results import NullRun
from aibrix_extproc.loadtest.runner import SESSION_HEADER
from aibrix_extproc.loadtest.talk import Style, Talk
from aibrix_extproc.stack.processes import Processes
from aibrix_extproc.workloads.sessions import Session

DURATION_S: Final = 2.0
_AT_ONCE: Final = 32
"""Enough that the client always has something to do."""


async def measure(
    session: aiohttp.ClientSession,
    sessions: Iterable[Session],
    style: Style,
    chunks: int,
    duration_s: float = DURATION_S,
) -> NullRun:
    """Send these sessions again and again for `duration_s`. Raises ProcessFailed."""
    with Processes() as processes:
        command = (sys.executable, "-m", "aibrix_extproc.loadtest.null_upstream", str(chunks))
        upstream = processes.spawn("null-upstream", command)
        address = (await upstream.first_line())["address"]
        client = ChatClient(session, f"http://{address}")
        return await _send(client, cycle(sessions), style, chunks, duration_s)


async def _send(
    client: ChatClient, sessions: Iterator[Session], style: Style, chunks: int, duration_s: float
) -> NullRun:
    began_s = time.perf_counter()
    ends_s = began_s + duration_s
    requests = errors = 0

    async def work() -> None:
        nonlocal requests, errors
        for session in sessions:
            talk = Talk(session, style)
            headers = {SESSION_HEADER: session.id} if session.id else {}
            for _ in session.turns:
                ask = talk.ask()
                outcome = await client.send(ask.body, ask.path, headers)
                requests += 1
                errors += outcome.error is not None
                talk.heard(outcome.answer)
                if time.perf_counter() > ends_s:
                    return

    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    return NullRun(requests, time.perf_counter() - began_s, chunks, errors)
