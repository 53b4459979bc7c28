"""What was predicted to be reused against what the engines' own counters say, over all requests.

Owns the schedule of reading the counters, and the metrics of the comparison. It needs nothing of
Envoy and no flag on an engine, but tells only shares over a time: another replica's requests are
in the engines' counters and not in this one's predictions.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from aibrix_extproc import background
from aibrix_extproc.agreement.asking import EngineAsker
from aibrix_extproc.agreement.counters import NOTHING, Counted, Growth
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings

_ENOUGH_TOKENS: Final = 1000
"""Of prompts, on both sides, for shares to be compared; fewer wait for the next reading."""


class Reuse:
    """Scheduled requests in (`scheduled`), the engines' counters beside them."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: Registry,
        asker: EngineAsker,
        see: Callable[[Pod, bytes], None] = lambda pod, page: None,
    ) -> None:
        """`see(pod, page)` is given each engine's metrics, on the event loop."""
        self._see = see
        self._interval_s = settings.engine_metrics_interval_s
        self._metrics = metrics
        self._registry = registry
        self._asker = asker
        self._growth = Growth()
        self._predicted: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        """Model → prompt tokens and, of these, predicted ones: changed by every request."""
        self._actual: dict[str, Counted] = defaultdict(lambda: NOTHING)
        self._shown: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def scheduled(self, model: str, prompt_tokens: int, matched_tokens: int) -> None:
        """One request was taken by an engine of this model (the pods' label), which held so much
        of it by what was known here at that time."""
        sums = self._predicted[model]
        sums[0] += prompt_tokens
        sums[1] += matched_tokens

    async def start(self) -> None:
        """Read the counters from now on."""
        if self._interval_s:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        await background.end(self._task)

    async def _run(self) -> None:
        while True:
            try:
                await self.read()
            except Exception:  # a fault of ours must not end the reading
                self._metrics.agreement_errors.labels("fault").inc()
                logging.getLogger(__name__).exception("reading the engines' counters failed")
            await asyncio.sleep(self._interval_s)

    async def read(self) -> None:
        """Read every ready pod's counters once, and compare."""
        pods = [pod for pod in self._registry.pods() if pod.ready]
        self._growth.keep_only({pod.identity for pod in self._registry.pods()})
        await asyncio.gather(*(self._read_one(pod) for pod in pods))
        models = {pod.model for pod in self._registry.pods()}
        for model in models:
            self._compare(model)
        for gone in (self._predicted.keys() | self._actual.keys() | self._shown) - models:
            self._shown.discard(gone)
            self._predicted.pop(gone, None)
            self._actual.pop(gone, None)
            self._metrics.remove(self._metrics.reuse_difference, gone)

    async def _read_one(self, pod: Pod) -> None:
        counted = await self._asker.counters(
            pod.key, pod.metrics_address or pod.address, lambda page: self._see(pod, page)
        )
        if counted is None or self._registry.get(pod.key) is None:
            return
        grown = self._growth.read(pod.identity, counted)
        self._metrics.engine_prompt_tokens.labels(pod.model).inc(grown.queries)
        self._metrics.engine_cached_tokens.labels(pod.model).inc(grown.hits)
        self._actual[pod.model] += grown

    def _compare(self, model: str) -> None:
        predicted, actual = Counted(*self._predicted[model]), self._actual[model]
        if min(predicted.queries, actual.queries) < _ENOUGH_TOKENS:
            return
        self._predicted.pop(model)
        self._actual.pop(model)
        if predicted.share is not None and actual.share is not None:
            self._shown.add(model)
            self._metrics.reuse_difference.labels(model).set(predicted.share - actual.share)
