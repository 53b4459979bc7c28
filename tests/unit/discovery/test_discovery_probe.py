"""The probe against engines' APIs over real HTTP."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from aibrix_extproc.discovery.pods import Pod, Rank, ServedModel
from aibrix_extproc.discovery.probe import Probe
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.support import data_path, eventually_async, free_port

MODELS = data_path("discovery/v1_models.json").read_bytes()
SOURCES = data_path("discovery/kv_event_sources.json").read_bytes()


class Engine:
    """Answers `/v1/models` and `/kv_event_sources` with what it is told to."""

    def __init__(self) -> None:
        self.replies: dict[str, tuple[int, bytes]] = {
            "/v1/models": (200, MODELS),
            "/kv_event_sources": (200, SOURCES),
        }
        self.asked: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.hold: asyncio.Event | None = None
        """Answers wait for this, where it is set."""
        self.address = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.at_once -= 1
        status, body = self.replies.get(request.path, (404, b"{}"))
        return web.Response(status=status, body=body, content_type="application/json")

    def times(self, path: str) -> int:
        return self.asked.count(path)


@asynccontextmanager
async def serving(engine: Engine, port: int = 0) -> AsyncIterator[Engine]:
    app = web.Application()
    app.router.add_get("/{path:.*}", engine.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    engine.address = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield engine
    finally:
        if engine.hold is not None:
            engine.hold.set()
        await runner.cleanup()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with serving(Engine()) as engine:
        yield engine


class Probed:
    def __init__(self, interval_s: float, retry_s: float, timeout_s: float = 5.0) -> None:
        self.metrics = Metrics()
        self.registry = Registry(self.metrics)
        self.registry.replace([])
        settings = Settings(probe_interval_s=interval_s)
        self.probe = Probe(
            self.registry, settings, self.metrics, retry_s=retry_s, timeout_s=timeout_s
        )

    def errors(self, reason: str) -> float:
        return self.metrics.discovery_errors.labels(reason)._value.get()

    async def count(self, reason: str, at_least: int) -> None:
        await eventually_async(lambda: self.errors(reason) >= at_least)

    async def know(self, *names: str) -> None:
        await eventually_async(lambda: self.registry.model_names() == names)


@asynccontextmanager
async def probing(
    interval_s: float = 0.05, retry_s: float = 0.02, timeout_s: float = 5.0
) -> AsyncIterator[Probed]:
    """Probing at short intervals; an interval of 60 s shows what happens at once."""
    probed = Probed(interval_s, retry_s, timeout_s)
    await probed.probe.start()
    try:
        yield probed
    finally:
        await probed.probe.close()


def pod_at(address: str, name: str = "a", **fields: Any) -> Pod:
    return Pod(
        namespace="n", name=name, uid=f"uid-{name}", address=address, model="llama", **fields
    )


async def test_a_new_pod_is_asked_at_once(engine: Engine) -> None:
    async with probing(interval_s=60) as probed:
        probed.registry.upsert(pod_at(engine.address))
        await probed.know("llama", "tiny", "tiny-lora")
        assert probed.registry.resolve("tiny") == ServedModel("tiny", "llama", None)
        assert probed.registry.resolve("tiny-lora") == ServedModel(
            "tiny-lora", "llama", "tiny-lora"
        )


async def test_pods_known_before_the_start_are_asked_too(engine: Engine) -> None:
    probed = Probed(60, 60)
    probed.registry.upsert(pod_at(engine.address))
    await probed.probe.start()
    try:
        await probed.know("llama", "tiny", "tiny-lora")
    finally:
        await probed.probe.close()


async def test_an_adapter_that_is_unloaded_is_forgotten_at_the_next_interval(
    engine: Engine,
) -> None:
    async with probing() as probed:
        probed.registry.upsert(pod_at(engine.address))
        await probed.know("llama", "tiny", "tiny-lora")
        engine.replies["/v1/models"] = (200, b'{"data": [{"id": "tiny"}]}')
        await probed.know("llama", "tiny")


async def test_ranks_are_asked_only_of_pods_that_send_events(engine: Engine) -> None:
    async with probing(interval_s=60) as probed:
        pod = pod_at(engine.address)
        probed.registry.upsert(pod)
        await probed.know("llama", "tiny", "tiny-lora")
        assert "/kv_event_sources" not in engine.asked
        probed.registry.upsert(replace(pod, kv_events=True))
        expected = (Rank(0, "tcp://127.0.0.1:5557", "tcp://127.0.0.1:5657"),)
        await eventually_async(lambda: probed.registry.pods()[0].ranks == expected)


async def test_an_engine_without_kv_event_sources_is_not_asked_again(engine: Engine) -> None:
    del engine.replies["/kv_event_sources"]
    async with probing() as probed:
        pod = pod_at(engine.address, kv_events=True)
        probed.registry.upsert(pod)
        await eventually_async(lambda: engine.times("/v1/models") >= 3)
        assert engine.times("/kv_event_sources") == 1
        assert probed.registry.pods() == (pod,)
        probed.registry.upsert(replace(pod, uid="another"))
        await eventually_async(lambda: engine.times("/kv_event_sources") == 2)


async def test_an_unready_pod_is_asked_only_when_it_is_ready(engine: Engine) -> None:
    async with probing(interval_s=60) as probed:
        asleep = pod_at(engine.address, "asleep", ready=False)
        probed.registry.replace([asleep])
        async with serving(Engine()) as other:
            probed.registry.upsert(pod_at(other.address, "awake"))
            await probed.know("llama", "tiny", "tiny-lora")
        assert engine.asked == []
        probed.registry.upsert(replace(asleep, ready=True))
        await eventually_async(lambda: engine.asked)


async def test_a_pod_that_is_gone_is_not_asked_again(engine: Engine) -> None:
    async with probing() as probed:
        probed.registry.upsert(pod_at(engine.address))
        await probed.know("llama", "tiny", "tiny-lora")
        probed.registry.remove("n/a")
        async with serving(Engine()) as other:
            asked = len(engine.asked)
            probed.registry.upsert(pod_at(other.address, "b"))
            await eventually_async(lambda: len(other.asked) >= 5)
        assert len(engine.asked) <= asked + 1  # one may have been under way


async def test_a_late_answer_of_a_replaced_pod_is_ignored(engine: Engine) -> None:
    engine.hold = asyncio.Event()
    async with probing(interval_s=60) as probed:
        probed.registry.upsert(pod_at(engine.address))
        await eventually_async(lambda: engine.asked)
        async with serving(Engine()) as other:
            other.replies["/v1/models"] = (200, b'{"data": [{"id": "other"}]}')
            probed.registry.upsert(pod_at(other.address))
            engine.hold.set()
            await probed.know("llama", "other")


# -- failures ---------------------------------------------------------------------------------

FAILURES = [
    ("probe_status", 503, b"{}"),
    ("probe_status", 302, b""),
    ("probe_reply", 200, b"<html>busy</html>"),
    ("probe_reply", 200, b'{"data": 7}'),
    ("probe_too_large", 200, json.dumps({"data": [], "pad": "x" * 3_000_000}).encode()),
]


@pytest.mark.parametrize(("reason", "status", "body"), FAILURES)
async def test_a_failed_answer_keeps_what_was_known_and_is_told_once(
    engine: Engine, reason: str, status: int, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with probing() as probed:
        probed.registry.upsert(pod_at(engine.address))
        await probed.know("llama", "tiny", "tiny-lora")
        engine.replies["/v1/models"] = (status, body)
        await probed.count(reason, 3)
        assert probed.registry.model_names() == ("llama", "tiny", "tiny-lora")
        engine.replies["/v1/models"] = (200, b'{"data": [{"id": "tiny"}]}')
        await probed.know("llama", "tiny")
    assert caplog.text.count(f"asking pod n/a: ok → {reason}") == 1


async def test_bad_sources_do_not_hide_the_models(engine: Engine) -> None:
    engine.replies["/kv_event_sources"] = (200, b'{"x": {}}')
    async with probing() as probed:
        pod = pod_at(engine.address, kv_events=True)
        probed.registry.upsert(pod)
        await probed.count("probe_reply", 1)
        await probed.know("llama", "tiny", "tiny-lora")
        assert probed.registry.pods() == (pod,)
        engine.replies["/kv_event_sources"] = (200, SOURCES)
        await eventually_async(lambda: probed.registry.pods() != (pod,))


async def test_bad_models_do_not_hide_the_sources(engine: Engine) -> None:
    engine.replies["/v1/models"] = (500, b"")
    async with probing() as probed:
        pod = pod_at(engine.address, kv_events=True)
        probed.registry.upsert(pod)
        await eventually_async(lambda: probed.registry.pods() != (pod,))
        await probed.count("probe_status", 1)


async def test_a_pod_that_does_not_listen_yet_is_tried_again_soon() -> None:
    port = free_port()
    async with probing(interval_s=60) as probed:
        probed.registry.upsert(pod_at(f"127.0.0.1:{port}"))
        await probed.count("probe_connection", 2)
        async with serving(Engine(), port):
            await probed.know("llama", "tiny", "tiny-lora")


async def test_an_engine_that_never_finishes_its_answer_holds_nobody_up(engine: Engine) -> None:
    engine.hold = asyncio.Event()
    async with probing(timeout_s=0.05) as probed:
        probed.registry.upsert(pod_at(engine.address))
        await probed.count("probe_timeout", 2)
        engine.hold.set()
        await probed.know("llama", "tiny", "tiny-lora")


async def test_names_past_the_bound_are_told_and_the_rest_is_used(engine: Engine) -> None:
    many = {"data": [{"id": f"m{i}"} for i in range(1001)]}
    engine.replies["/v1/models"] = (200, json.dumps(many).encode())
    async with probing() as probed:
        probed.registry.upsert(pod_at(engine.address))
        await probed.count("probe_names", 1)
        assert len(probed.registry.model_names()) == 1001  # 1,000 and the label


async def test_few_pods_are_asked_at_once(engine: Engine) -> None:
    engine.hold = asyncio.Event()
    async with probing(interval_s=60) as probed:
        probed.registry.replace([pod_at(engine.address, f"p{i}") for i in range(40)])
        await eventually_async(lambda: engine.at_once == 16)
        engine.hold.set()
        await eventually_async(lambda: engine.times("/v1/models") == 40)
        assert engine.most_at_once == 16


async def test_no_proxy_of_the_environment_is_used(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with probing(interval_s=60) as probed:
        probed.registry.upsert(pod_at(engine.address))
        await probed.know("llama", "tiny", "tiny-lora")


async def test_close_ends_what_is_under_way(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.hold = asyncio.Event()
    with caplog.at_level(logging.INFO):
        async with probing() as probed:
            probed.registry.upsert(pod_at(engine.address))
            await eventually_async(lambda: engine.asked)
            await probed.probe.close()
            probed.registry.upsert(pod_at(engine.address, "late"))
    assert caplog.text == ""
    assert len(engine.asked) == 1


async def test_close_without_start_is_harmless() -> None:
    await Probed(1, 1).probe.close()
