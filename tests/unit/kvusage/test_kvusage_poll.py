"""Engines are asked over real HTTP while somebody wants to know, each rank for itself."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.fakes.config import EngineConfig, TimeModel
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.kvusage.poll import UsagePoll
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.cache_use import CacheSample, CacheUse
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.settings import Settings
from tests.support import eventually_async, free_port

SLOW = TimeModel(decode_ms_per_token=50.0)
ERRORS = "aibrix_extproc_agreement_errors_total"


class Rig:
    """Pods, their sources, and a poll that has not begun."""

    def __init__(self, pods: Sequence[Pod], **settings: Any) -> None:
        self.now = 100.0
        values = Settings(**{"kv_usage_interval_s": 0.02, **settings})
        self.metrics = Metrics()
        self.registry = Registry(self.metrics)
        self.ledger = Ledger(600.0)
        index = PrefixIndex()
        self.manager = SourceManager(index, values, self.metrics, lambda source: None)
        self.registry.subscribe(self.manager.on_pod)
        self.registry.replace(pods)
        self.caches = CacheUse()
        self.poll = UsagePoll(
            values,
            self.metrics,
            self.registry,
            self.manager,
            self.ledger,
            self.caches,
            lambda: self.now,
        )

    def source(self, pod: str, rank: int = 0) -> int:
        found = self.manager.candidates(self.registry.pods())
        return next(c.source for c in found if (c.pod.name, c.rank) == (pod, rank))

    def sample(self, pod: str, rank: int = 0) -> CacheSample | None:
        return self.caches.samples.get(self.source(pod, rank))

    def errors(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value(ERRORS, {"reason": reason}) or 0.0


def pod_of(engine: FakeEngine, **more: Any) -> Pod:
    ranks = tuple(Rank(number) for number in range(engine.config.data_parallel_size))
    fields = {"namespace": "d", "name": engine.config.name, "uid": "u", "ranks": ranks}
    return Pod(**{**fields, "address": engine.address, "model": "tiny", **more})


@asynccontextmanager
async def engines(*configs: EngineConfig) -> AsyncIterator[list[FakeEngine]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(FakeEngine(config)) for config in configs]


@asynccontextmanager
async def pages(text: str) -> AsyncIterator[tuple[str, list[float]]]:
    """An address whose every page says that, and when it was asked for."""
    asked: list[float] = []

    async def answer(_request: web.Request) -> web.Response:
        asked.append(asyncio.get_running_loop().time())
        return web.Response(text=text + "\n")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


def stub(address: str) -> Pod:
    return Pod("d", "a", "u", address, "tiny")


def stands_still(asked: Sequence[float]) -> bool:
    """Ten times the interval have gone by without a question."""
    return asyncio.get_running_loop().time() - asked[-1] > 0.2


@asynccontextmanager
async def rig(pods: Sequence[Pod], **settings: Any) -> AsyncIterator[Rig]:
    made = Rig(pods, **settings)
    await made.poll.start()
    try:
        yield made
    finally:
        await made.poll.close()
        made.manager.close()


@asynccontextmanager
async def busy(engine: FakeEngine, rank: int = 0, tokens: int = 800) -> AsyncIterator[None]:
    """A request of so many tokens is in that rank's cache meanwhile."""
    body = {"model": "tiny", "prompt": [7] * tokens, "max_tokens": 500, "stream": True}
    async with aiohttp.ClientSession() as session:
        url, headers = (
            f"http://{engine.address}/v1/completions",
            {"x-data-parallel-rank": str(rank)},
        )
        async with session.post(url, json=body | {"ignore_eos": True}, headers=headers):
            await eventually_async(lambda: engine.ranks[rank].blocks.used_blocks >= tokens // 16)
            yield


def config(name: str = "a", **more: Any) -> EngineConfig:
    fields = {"name": name, "num_blocks": 201, "time": SLOW, "kv_events_port": None}
    return EngineConfig(**{**fields, "kv_replay_port": None, **more})


@pytest.mark.parametrize("version", ["0.11.2", "0.32.0"])
async def test_what_an_engine_says_is_kept_with_its_size_and_what_was_booked(version: str) -> None:
    async with (
        engines(config("a", vllm_version=version), config("b", vllm_version=version)) as (a, b),
        rig([pod_of(a), pod_of(b)], routing_algorithm="least-kv-cache") as made,
        busy(b),
    ):
        made.ledger.reserve(made.source("b"), 800, made.now, context_tokens=800)
        made.now = 200.0
        await eventually_async(lambda: (s := made.sample("b")) and s.at_s == 200.0 and s.used > 0.2)
        sample = made.sample("b")
        assert sample is not None
        assert sample.used == pytest.approx(b.ranks[0].blocks.usage, abs=0.02)
        assert (sample.size_tokens, sample.context_tokens) == (201 * 16, 800)
        idle = made.sample("a")
        assert idle is not None
        assert (idle.used, idle.context_tokens) == (0.0, 0)


async def test_each_rank_of_a_pod_has_a_sample_of_its_own() -> None:
    async with (
        engines(config("a", data_parallel_size=2)) as (a,),
        rig([pod_of(a)], routing_algorithm="least-kv-cache") as made,
        busy(a, rank=1),
    ):
        await eventually_async(lambda: (s := made.sample("a", 1)) and s.used > 0.2)
        sample = made.sample("a", 0)
        assert sample is not None
        assert sample.used == 0.0


async def test_nobody_is_asked_until_a_decision_goes_by_it() -> None:
    page = "vllm:kv_cache_usage_perc 0.5"
    async with pages(page) as (address, asked), rig([stub(address)]) as made:
        await asyncio.sleep(0.1)
        assert not asked
        made.caches.want(made.now)
        await eventually_async(lambda: made.sample("a"))
        made.now += 1000.0  # nobody has wanted to know for long
        await eventually_async(lambda: stands_still(asked))
        made.caches.want(made.now)
        await eventually_async(lambda: (s := made.sample("a")) and s.at_s == made.now)


async def test_switched_off_nobody_is_asked_at_all() -> None:
    settings = {"kv_usage_interval_s": 0.0, "routing_algorithm": "least-kv-cache"}
    page = "vllm:kv_cache_usage_perc 0.5"
    async with pages(page) as (address, asked), rig([stub(address)], **settings) as made:
        made.caches.want(made.now)
        await asyncio.sleep(0.1)
        assert not asked


async def test_an_engine_that_cannot_be_asked_is_counted_told_once_and_costs_others_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with engines(config()) as (a,):
        away = pod_of(a, name="away", address=f"127.0.0.1:{free_port()}")
        async with rig([pod_of(a), away], routing_algorithm="least-kv-cache") as made:
            await eventually_async(lambda: made.errors("metrics_connection") > 3)
            assert made.sample("a") is not None
            assert made.sample("away") is None
    assert caplog.text.count("KV cache use of d/away: ok → metrics_connection") == 1


async def test_a_page_without_the_metric_is_counted_so() -> None:
    async with pages("vllm:num_requests_running 3") as (address, _), rig([stub(address)]) as made:
        made.caches.want(made.now)
        await eventually_async(lambda: made.errors("usage_none") > 1)
        assert made.sample("a") is None


async def test_the_page_of_a_metrics_port_counts_and_its_only_rank_whatever_its_number() -> None:
    page = 'vllm:kv_cache_usage_perc{engine="3",model_name="m"} 0.5'
    async with pages(page) as (address, _):
        pod = replace(stub(f"127.0.0.1:{free_port()}"), metrics_address=address)
        async with rig([pod], routing_algorithm="least-kv-cache") as made:
            await eventually_async(lambda: made.sample("a"))
            sample = made.sample("a")
            assert sample is not None
            assert (sample.used, sample.size_tokens) == (0.5, None)


async def test_a_pod_that_is_gone_is_forgotten_and_one_that_is_not_ready_is_not_asked() -> None:
    async with engines(config("a"), config("b"), config("c")) as (a, b, c):
        pods = [pod_of(a), pod_of(b), pod_of(c, ready=False)]
        async with rig(pods, routing_algorithm="least-kv-cache") as made:
            await eventually_async(lambda: made.sample("a") and made.sample("b"))
            assert made.sample("c") is None
            gone = made.source("a")
            made.registry.replace(pods[1:])
            await eventually_async(lambda: gone not in made.caches.samples)
            assert made.sample("b") is not None
