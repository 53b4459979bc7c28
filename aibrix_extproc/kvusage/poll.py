"""Asks engines how full their KV caches are, while decisions go by it.

Owns the schedule. How a page is fetched is for `agreement.asking`, what it says for `page`.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from aibrix_extproc import background
from aibrix_extproc.agreement.asking import EngineAsker
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.kvevents.capacity import Capacity
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.cache_use import CacheSample, CacheUse
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.strategies.common import NO_LOAD
from aibrix_extproc.routing.strategies.least_kv_cache import LeastKvCache
from aibrix_extproc.settings import Settings

_NO_LONGER_THAN_S: Final = 1.0
"""One answer: an engine that hangs must not make what others say old."""
_AT_ONCE: Final = 32


class UsagePoll:
    """`start` after discovery, on the event loop."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: Registry,
        manager: SourceManager,
        ledger: Ledger,
        caches: CacheUse,
        clock: Callable[[], float],
    ) -> None:
        """`clock` is the ledger's."""
        self._interval_s = settings.kv_usage_interval_s
        self._always = settings.routing_algorithm == LeastKvCache.name
        self._metrics = metrics
        self._registry = registry
        self._manager = manager
        self._ledger = ledger
        self._caches = caches
        self._clock = clock
        self._asker = EngineAsker(metrics, _NO_LONGER_THAN_S, _AT_ONCE)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._asked: set[str] = set()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ask from now on, unless that is switched off."""
        if not self._interval_s:
            return
        self._caches.on_wanted = self._wanted.set
        await self._asker.start()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Safe where it was never started."""
        await background.end(self._task)
        await self._asker.close()

    async def _run(self) -> None:
        while True:
            if not (self._always or self._caches.is_wanted(self._clock())):
                self._wanted.clear()
                await self._wanted.wait()
            began_s = self._clock()
            try:
                await self.read()
            except Exception:  # a fault of ours must not end the reading
                self._metrics.agreement_errors.labels("fault").inc()
                logging.getLogger(__name__).exception("reading the use of KV caches failed")
            await asyncio.sleep(max(0.0, began_s + self._interval_s - self._clock()))

    async def read(self) -> None:
        """Ask every ready pod once."""
        pods = self._registry.pods()
        for gone in self._asked - {pod.key for pod in pods}:
            self._asker.forget(gone)
        self._asked = {pod.key for pod in pods}
        self._caches.keep_only({one.source for one in self._manager.candidates(pods)})
        await asyncio.gather(*(self._read_one(pod) for pod in pods if pod.ready))

    async def _read_one(self, pod: Pod) -> None:
        async with self._slots:
            asked_s = self._clock()
            ranks = self._manager.candidates((pod,))
            booked = [self._ledger.booked.get(one.source, NO_LOAD) for one in ranks]
            found = await self._asker.usage(pod.key, pod.metrics_address or pod.address)
        if found is None:
            return
        used, capacities = found
        # Where the page numbers the only rank in another way, it is that rank's all the same.
        only = next(iter(used)) if len(ranks) == len(used) == 1 else None
        for one, load in zip(ranks, booked, strict=True):
            number = one.rank if one.rank in used else only
            if number is not None:
                size = _tokens(capacities.get(number))
                sample = CacheSample(used[number], asked_s, size, load.context_tokens)
                self._caches.put(one.source, sample)


def _tokens(capacity: Capacity | None) -> int | None:
    """How many a cache holds."""
    if capacity is None or capacity.block_size is None:
        return None
    return capacity.blocks * capacity.block_size
