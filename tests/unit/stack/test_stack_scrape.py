"""Figures are read from real metrics pages."""

import aiohttp

from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.stack import scrape


def test_samples_are_summed_over_labels() -> None:
    page = (
        "# TYPE vllm:prefix_cache_hits_total counter\n"
        'vllm:prefix_cache_hits_total{engine="0"} 3.0\n'
        'vllm:prefix_cache_hits_total{engine="1"} 4.0\n'
    )
    assert scrape.summed(page) == {"vllm:prefix_cache_hits_total": 7.0}


def test_the_processors_counters_have_the_names_that_are_read() -> None:
    metrics = Metrics()
    assert metrics.prompt_tokens.describe()[0].name + "_total" == scrape.PROMPT_TOKENS
    assert metrics.matched_tokens.describe()[0].name + "_total" == scrape.MATCHED_TOKENS


async def test_an_engine_says_what_it_reused() -> None:
    body = {"model": "tiny", "prompt": list(range(20, 120)), "max_tokens": 1}
    async with FakeEngine(EngineConfig()) as engine, aiohttp.ClientSession() as session:
        url = f"http://{engine.address}"
        for _ in range(2):
            async with session.post(f"{url}/v1/completions", json=body) as reply:
                assert reply.status == 200
        figures = await scrape.engine_figures(session, url)
    assert figures == scrape.EngineFigures(queried_tokens=200, hit_tokens=96, answered=2)
