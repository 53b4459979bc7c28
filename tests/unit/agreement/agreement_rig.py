"""Pods of fake engines, and what asks them, without Envoy."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from aibrix_extproc.agreement.asking import EngineAsker
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.fakes.tokenizer import WordTokenizer
from aibrix_extproc.metrics import Metrics


class Engines:
    """Some fake engines with a registry of their pods."""

    def __init__(self, engines: list[FakeEngine], asker: EngineAsker, metrics: Metrics) -> None:
        self.engines = engines
        self.asker = asker
        self.metrics = metrics
        self.registry = Registry(metrics)
        self.registry.replace(map(self.pod, range(len(engines))))

    def pod(self, number: int, **more: Any) -> Pod:
        address = self.engines[number].address
        return Pod(**{"namespace": "d", "name": f"p{number}", "uid": "u", "address": address,
                      "model": "tiny", **more})  # fmt: skip

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def fake_engines(*vocabularies: int) -> AsyncIterator[Engines]:
    """One engine for each size of a vocabulary: equal sizes make equal tokens."""
    metrics = Metrics()
    asker = EngineAsker(metrics, timeout_s=2.0)
    async with AsyncExitStack() as stack:
        await asker.start()
        stack.push_async_callback(asker.close)
        engines = [
            await stack.enter_async_context(
                FakeEngine(
                    EngineConfig(name=f"p{number}", kv_events_port=None), WordTokenizer(size)
                )
            )
            for number, size in enumerate(vocabularies)
        ]
        yield Engines(engines, asker, metrics)
