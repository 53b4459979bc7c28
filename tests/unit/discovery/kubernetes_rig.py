"""Kubernetes discovery, by the official client, of an API server over real HTTP."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration

from aibrix_extproc.discovery.kube_watch import Timing
from aibrix_extproc.discovery.kubernetes import KubernetesPods
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.fake_kube import FakeKube
from tests.support import eventually_async

QUICK = Timing(backoff_s=0.02, backoff_max_s=0.1)


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    fake = FakeKube().start()
    yield fake
    fake.stop()


class Watcher:
    """A KubernetesPods with its registry and metrics."""

    def __init__(self, kube: FakeKube, timing: Timing = QUICK, **settings: Any) -> None:
        configuration = Configuration(host=kube.url)
        configuration.retries = 0
        self.client = ApiClient(configuration)
        self.metrics = Metrics()
        self.registry = Registry(self.metrics)
        self.changes: list[tuple[Pod | None, Pod | None]] = []
        self.registry.subscribe(lambda before, after: self.changes.append((before, after)))
        self.pods = KubernetesPods(
            self.registry, Settings(**settings), self.metrics, self.client, timing
        )

    def names(self) -> list[str]:
        return [pod.name for pod in self.registry.pods()]

    def errors(self, reason: str) -> float:
        return self.metrics.discovery_errors.labels(reason)._value.get()

    async def see(self, *names: str) -> None:
        await eventually_async(lambda: self.registry.listed and self.names() == list(names))


@asynccontextmanager
async def watching(kube: FakeKube, **kwargs: Any) -> AsyncIterator[Watcher]:
    watcher = Watcher(kube, **kwargs)
    await watcher.pods.start()
    try:
        yield watcher
    finally:
        await watcher.pods.close()
        watcher.client.close()


async def until(check: Callable[[], Any]) -> None:
    await eventually_async(lambda: bool(check()))
