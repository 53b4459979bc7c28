"""Asks each pod what it serves and where its events are, again and again.

Owns the schedule and the bounded HTTP calls; `probe_replies` reads the answers and the registry
keeps what was learnt. Only ready pods are asked. It knows no request and no Kubernetes.
"""

import asyncio
import logging
import random
from typing import Final

import httpx

from aibrix_extproc.discovery.pods import ListedModel, Pod, PodFacts, Rank
from aibrix_extproc.discovery.probe_replies import BadReply, parse_models, parse_sources
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings

log = logging.getLogger(__name__)

_CONCURRENT: Final = 16
"""Pods asked at once."""
_TIMEOUT_S: Final = 5.0
"""Of one call, from first to last byte."""
_RETRY_S: Final = 1.0
"""After a first failure; twice as long each time, up to the usual interval."""
_MAX_REPLY_BYTES: Final = 2 * 1024 * 1024
"""A model's entry in `/v1/models` takes about 600 bytes: room for 3,000."""


class _Failed(Exception):
    """One call failed. `reason` is a label of `discovery_errors`."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Probe:
    """One small task for each ready pod, which ends with the pod, its readiness or identity."""

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        metrics: Metrics,
        retry_s: float = _RETRY_S,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._registry = registry
        self._interval_s = settings.probe_interval_s
        self._retry_s = min(retry_s, self._interval_s)
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._states = StateLog(log)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_CONCURRENT)
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Ask every ready pod, and each new one at once."""
        self._client = httpx.AsyncClient(
            trust_env=False,  # a proxy of the environment has no business inside the cluster
            timeout=self._timeout_s,
            follow_redirects=False,
            headers={"accept": "application/json", "accept-encoding": "identity"},
            limits=httpx.Limits(max_connections=_CONCURRENT, keepalive_expiry=2.0),
        )
        self._registry.subscribe(self._on_pod)
        for pod in self._registry.pods():
            self._on_pod(None, pod)

    async def close(self) -> None:
        """Stop asking. Safe where it was never started."""
        client, self._client = self._client, None
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if client is not None:
            await client.aclose()

    def _on_pod(self, before: Pod | None, after: Pod | None) -> None:
        """Registry listener: one task for each ready pod, begun anew where it is another."""
        pod = after or before
        if pod is None or self._client is None:
            return
        wanted = _ask_of(after)
        if wanted == _ask_of(before) and (wanted is None or pod.key in self._tasks):
            return
        task = self._tasks.pop(pod.key, None)
        if task is not None:
            task.cancel()
        if wanted is None or after is None:
            self._states.forget(_thing(pod))
            return
        self._tasks[pod.key] = asyncio.create_task(self._follow(after))

    async def _follow(self, pod: Pod) -> None:
        """Ask one pod until cancelled: at once, then at the interval, sooner after a failure."""
        asks_sources = pod.kv_events
        failures = 0
        while True:
            try:
                async with self._slots:
                    asks_sources = await self._ask(pod, asks_sources)
            except _Failed as error:
                failures += 1
                self._metrics.discovery_errors.labels(error.reason).inc()
                self._states.changed(_thing(pod), error.reason, str(error))
            except Exception:  # a fault of ours must not end the asking
                failures += 1
                self._metrics.discovery_errors.labels("probe_fault").inc()
                log.exception("asking %s failed", pod.key)
            else:
                failures = 0
                self._states.changed(_thing(pod), "ok")
            await asyncio.sleep(self._pause_s(failures))

    def _pause_s(self, failures: int) -> float:
        pause_s = self._interval_s
        if failures:
            pause_s = min(self._retry_s * 2.0 ** min(failures - 1, 16), pause_s)
        return pause_s * random.uniform(0.8, 1.2)

    async def _ask(self, pod: Pod, asks_sources: bool) -> bool:
        """Ask once and hand over what was learnt; whether `/kv_event_sources` exists.

        What one call brought counts even where the other fails. Raises _Failed.
        """
        ranks, failure = None, None
        if asks_sources:
            try:
                ranks = await self._sources(pod)
                asks_sources = ranks is not None
            except _Failed as error:
                failure = error
        try:
            models, left_out = await self._models(pod)
        except _Failed as error:
            self._registry.learn(pod.identity, PodFacts(ranks=ranks))
            raise failure or error from None
        self._registry.learn(pod.identity, PodFacts(models=models, ranks=ranks))
        if failure is not None:
            raise failure
        if left_out:
            raise _Failed("probe_names", f"{left_out} names of its /v1/models are left out")
        return asks_sources

    async def _models(self, pod: Pod) -> tuple[tuple[ListedModel, ...], int]:
        """The listed models, and how many names were left out. Raises _Failed."""
        status, body = await self._get(pod, "/v1/models")
        if status != 200:
            raise _Failed("probe_status", f"/v1/models answered {status}")
        try:
            return parse_models(body)
        except BadReply as error:
            raise _Failed("probe_reply", f"/v1/models: {error}") from None

    async def _sources(self, pod: Pod) -> tuple[Rank, ...] | None:
        """The ranks with their endpoints; None before vLLM 0.31, which answers 404.

        Raises _Failed.
        """
        status, body = await self._get(pod, "/kv_event_sources")
        if status == 404:
            return None
        if status != 200:
            raise _Failed("probe_status", f"/kv_event_sources answered {status}")
        try:
            return parse_sources(body, pod.address)
        except BadReply as error:
            raise _Failed("probe_reply", f"/kv_event_sources: {error}") from None

    async def _get(self, pod: Pod, path: str) -> tuple[int, bytes]:
        """Status and body of one GET, bounded in time and size. Raises _Failed."""
        assert self._client is not None  # noqa: S101 - tasks live between start and close
        body = bytearray()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("GET", f"http://{pod.address}{path}") as response,
            ):
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > _MAX_REPLY_BYTES:
                        raise _Failed(
                            "probe_too_large", f"{path} sends more than {_MAX_REPLY_BYTES} bytes"
                        )
        except (TimeoutError, httpx.TimeoutException):
            why = f"{path}: no answer within {self._timeout_s:g} s"
            raise _Failed("probe_timeout", why) from None
        except httpx.HTTPError as error:
            raise _Failed("probe_connection", f"{path}: {error!r}") from None
        return response.status_code, bytes(body)


def _ask_of(pod: Pod | None) -> tuple[object, ...] | None:
    """What makes a pod another one to ask; None for one that is not asked."""
    return (pod.identity, pod.kv_events) if pod is not None and pod.ready else None


def _thing(pod: Pod) -> str:
    return f"asking pod {pod.key}"
