"""What is read of /metrics pages during a run."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from aibrix_extproc.loadtest.report.results import PodSample
from aibrix_extproc.loadtest.samples import Pages, Sampler, sample
from tests.support import eventually_async, free_port

PROCESSOR = """\
# TYPE aibrix_prefix_cache_routing_selection_total counter
aibrix_prefix_cache_routing_selection_total{selection="prefix",model="m"} 3
aibrix_prefix_cache_routing_selection_total{selection="prefix",model="n"} 2
aibrix_prefix_cache_routing_selection_total{selection="load",model="m"} 1
# TYPE aibrix_extproc_decision_basis_total counter
aibrix_extproc_decision_basis_total{basis="events"} 6
# TYPE aibrix_extproc_prompt_tokens_total counter
aibrix_extproc_prompt_tokens_total{model="m"} 100
# TYPE aibrix_extproc_matched_tokens_total counter
aibrix_extproc_matched_tokens_total{model="m"} 40
"""
ENGINE = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 2
vllm:num_requests_running{engine="1"} 1
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0"} 4
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{engine="0"} 70
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{engine="0"} 7
"""


@asynccontextmanager
async def page(text: str) -> AsyncIterator[str]:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(text=text)

    app = web.Application()
    app.router.add_get("/metrics", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
    finally:
        await runner.cleanup()


def test_pages_become_figures_and_those_of_several_processors_are_added_up() -> None:
    found = sample(1.5, [PROCESSOR, PROCESSOR], {"pod-1": ENGINE})
    assert found.at_s == 1.5
    assert found.decisions_by_reason == {"prefix": 10, "load": 2}
    assert found.decisions_by_basis == {"events": 12}
    assert (found.prompt_tokens, found.matched_tokens) == (200, 80)
    assert found.pods == {"pod-1": PodSample(3, 4, 70, 7)}


def test_what_no_page_tells_is_not_known() -> None:
    found = sample(0.0, [], {"pod-1": "# nothing\n"})
    assert found.prompt_tokens is None
    assert found.pods == {"pod-1": PodSample(0, 0, None, None)}


async def test_it_reads_at_once_at_intervals_and_at_the_end() -> None:
    times = itertools.count(1)
    async with page(PROCESSOR) as ours, page(ENGINE) as engine, aiohttp.ClientSession() as session:
        gone = f"http://127.0.0.1:{free_port()}/metrics"
        pages = Pages((ours,), {"pod-1": engine, "pod-2": gone})
        sampler = Sampler(session, pages, lambda: float(next(times)), interval_s=0.02)
        await sampler.start()
        await eventually_async(lambda: len(sampler._read) >= 3)
        samples = await sampler.finish()
        count = len(samples)
        await asyncio.sleep(0.05)
        assert len(sampler._read) == count
    assert [one.at_s for one in samples] == sorted(one.at_s for one in samples)
    assert all(set(one.pods) == {"pod-1"} for one in samples)


async def test_a_moment_of_which_nothing_could_be_read_is_left_out() -> None:
    async with aiohttp.ClientSession() as session:
        pages = Pages((f"http://127.0.0.1:{free_port()}/metrics",))
        sampler = Sampler(session, pages, lambda: 0.0)
        await sampler.start()
        assert await sampler.finish() == []
