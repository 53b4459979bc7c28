"""Keeps fingerprints of all tokenizers of a model, names those that differ, and flushes.

Owns when a pod's tokenizer is asked (at once where it is new, ready again or restarted, then
seldom), and what follows from the answer: the metric and log line of pods that differ, and the
flush of remembered tokens where they may be of another tokenizer by now. Belongs to the event
loop's thread, except `restarted`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from typing import Final

from aibrix_extproc import background
from aibrix_extproc.agreement.asking import EngineAsker
from aibrix_extproc.agreement.fingerprints import Fingerprint, Fingerprints
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings

ENDPOINT: Final = "the tokenizer endpoint"
"""Named like a pod where AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT is set."""
_RETRY_S: Final = 5.0
"""After a question that failed; a starting engine answers late."""

log = logging.getLogger("aibrix_extproc.agreement")


class Tokenizers:
    """One task that asks what is due. `flush(names)` forgets the tokens of models by name."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: Registry,
        asker: EngineAsker,
        fingerprints: Fingerprints,
        flush: Callable[[Collection[str]], None],
    ) -> None:
        self._endpoint = settings.tokenizer_endpoint
        self._interval_s = settings.tokenizer_check_interval_s
        self._is_on = settings.use_remote_tokenizer
        self._metrics = metrics
        self._registry = registry
        self._asker = asker
        self._fingerprints = fingerprints
        self._flush = flush
        self._due: dict[str, float] = {}
        """Pod, or ENDPOINT and its model → when to ask it, on the loop's clock."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._states = StateLog(log, good="agree")

    async def start(self) -> None:
        """Ask every ready pod, and from now on each that comes."""
        if not self._is_on:
            return
        self._registry.subscribe(self.on_pod)
        for pod in self._registry.pods():
            self.on_pod(None, pod)
        if self._interval_s:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        await background.end(self._task)

    # -- what happens to pods -----------------------------------------------------------------

    def on_pod(self, before: Pod | None, after: Pod | None) -> None:
        """Registry listener. Remembered tokens may not be those of another engine."""
        pod = after or before
        if pod is None:
            return
        replaced = before is not None and after is not None and before.identity != after.identity
        if before is not None and (after is None or replaced or before.model != after.model):
            self._gone(before)
        if replaced:
            self._drop(pod.model, "replaced", pod.key)
        if after is None or not after.ready:
            self._due.pop(pod.key, None)
        elif before is None or replaced or not before.ready or before.model != after.model:
            self._ask_soon(after)

    def restarted(self, key: str) -> None:
        """A pod's engine started anew, or may have. On the event loop."""
        pod = self._registry.get(key)
        if pod is not None and self._is_on:
            self._drop(pod.model, "restart", key)
            self._ask_soon(pod)

    def _gone(self, pod: Pod) -> None:
        self._fingerprints.forget(pod.model, pod.key)
        self._asker.forget(pod.key)
        if not any(other.model == pod.model for other in self._registry.pods()):
            self._fingerprints.forget(pod.model, ENDPOINT)
            self._due.pop(_endpoint_of(pod.model), None)
        self._judge(pod.model)

    def _drop(self, model: str, reason: str, who: str) -> None:
        resolve = self._registry.resolve
        names = {model} | {
            name
            for name in self._registry.model_names()
            if (served := resolve(name)) is not None and served.model == model
        }
        self._flush(names)
        self._metrics.token_flushes.labels(reason).inc()
        log.info("remembered tokens of %s are dropped (%s: %s)", model, reason, who)

    def _ask_soon(self, pod: Pod) -> None:
        self._due[pod.key] = 0.0
        if self._endpoint:
            self._due.setdefault(_endpoint_of(pod.model), 0.0)
        self._wake.set()

    # -- asking -------------------------------------------------------------------------------

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self._wake.clear()
            now = clock()
            due = [who for who, at in self._due.items() if at <= now]
            await asyncio.gather(*(self._ask(who) for who in due))
            if self._due and not self._wake.is_set():
                pause_s = max(0.05, min(self._due.values()) - clock())
                # Not wait_for: in Python 3.11 that loses a cancellation which meets the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
            elif not self._due:
                await self._wake.wait()

    async def _ask(self, who: str) -> None:
        clock = asyncio.get_running_loop().time
        self._due[who] = clock() + self._interval_s
        try:
            told = await self._ask_one(who)
        except Exception:  # a fault of ours must not end the asking
            self._metrics.agreement_errors.labels("fault").inc()
            log.exception("asking %s for its tokens failed", who)
            return
        if not told and who in self._due:
            self._due[who] = min(self._due[who], clock() + min(_RETRY_S, self._interval_s))

    async def _ask_one(self, who: str) -> bool:
        """False: it did not answer."""
        prefix = _endpoint_of("")
        if who.startswith(prefix):
            model = who.removeprefix(prefix)
            found = await self._asker.fingerprint(ENDPOINT, self._endpoint, model)
            return found is not None and self._learn(model, ENDPOINT, found)
        pod = self._registry.get(who)
        if pod is None or not pod.ready:
            self._due.pop(who, None)
            return True
        found = await self._asker.fingerprint(pod.key, f"http://{pod.address}", pod.model)
        now = self._registry.get(who)
        if now is None or now.identity != pod.identity:
            return True  # another engine meanwhile: it is asked by itself
        return found is not None and self._learn(pod.model, pod.key, found)

    def _learn(self, model: str, who: str, found: Fingerprint) -> bool:
        before = self._fingerprints.versions(model)
        self._fingerprints.learn(model, who, found)
        after = self._fingerprints.versions(model)
        if before and after != before:
            self._drop(model, "changed", who)
        self._judge(model)
        return True

    def _judge(self, model: str) -> None:
        difference = self._fingerprints.difference(model)
        thing = f"tokenizers of {model}"
        if difference is None:
            self._states.changed(thing, "agree")
            if model in self._fingerprints.models():
                self._metrics.tokenizers_differ.labels(model).set(0)
            else:
                self._metrics.remove(self._metrics.tokenizers_differ, model)
            return
        self._metrics.tokenizers_differ.labels(model).set(len(difference.odd))
        what = "tokenizer" if difference.what == "text" else "chat template"
        odd, others = ", ".join(difference.odd), ", ".join(difference.others)
        why = f"another {what} than {others}: prompts match only on one side; roll out one version"
        self._states.changed(thing, f"differ at {odd}", why)


def _endpoint_of(model: str) -> str:
    return f"{ENDPOINT} for {model}"
