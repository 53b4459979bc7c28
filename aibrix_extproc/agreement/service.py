"""The room's tasks: starts and stops them, and takes what other threads report onto the loop.

Owns their life and no rule.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection

from aibrix_extproc import background
from aibrix_extproc.agreement.asking import EngineAsker
from aibrix_extproc.agreement.reuse import Reuse
from aibrix_extproc.agreement.tokenizers import Tokenizers
from aibrix_extproc.agreement.watch import Agreement
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings

_TICK_S = 0.5

log = logging.getLogger("aibrix_extproc.agreement")


class AgreementService:
    """`start` after discovery, on the event loop."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: Registry,
        agreement: Agreement,
        flush: Callable[[Collection[str]], None],
        see: Callable[[Pod, bytes], None] = lambda pod, page: None,
    ) -> None:
        """`see(pod, page)` is given each engine's metrics, on the event loop."""
        self._metrics = metrics
        self._registry = registry
        self._agreement = agreement
        self._asker = EngineAsker(metrics)
        self._tokenizers = Tokenizers(
            settings, metrics, registry, self._asker, agreement.fingerprints, flush
        )
        self._reuse = Reuse(settings, metrics, registry, self._asker, see)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._asker.start()
        await self._tokenizers.start()
        await self._reuse.start()
        self._agreement.reuse = self._reuse
        self._registry.subscribe(self._agreement.on_pod)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Safe where it was never started."""
        self._loop = None
        await background.end(self._task)
        await self._tokenizers.close()
        await self._reuse.close()
        await self._asker.close()

    def new_engine(self, pod: str) -> None:
        """The engine of a pod (`namespace/name`) started anew, or may have. From any thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed
                loop.call_soon_threadsafe(self._tokenizers.restarted, pod)

    async def _run(self) -> None:
        while True:
            try:
                self._agreement.tick()
            except Exception:  # a fault of ours must not end the looking
                self._metrics.agreement_errors.labels("fault").inc()
                log.exception("comparing engines with what is believed of them failed")
            await asyncio.sleep(_TICK_S)
