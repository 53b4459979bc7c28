"""What the processor and the engines say of themselves during a run, read at intervals.

Owns the reading of their /metrics pages. Pages are kept as they came and read after the run, so
that reading them makes no request late. Knows no request.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from aibrix_extproc.loadtest.report.results import PodSample, Sample

INTERVAL_S: Final = 2.0
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5.0)
_REASONS: Final = "aibrix_prefix_cache_routing_selection_total"
_BASES: Final = "aibrix_extproc_decision_basis_total"
_PROMPT: Final = "aibrix_extproc_prompt_tokens_total"
_MATCHED: Final = "aibrix_extproc_matched_tokens_total"
_RUNNING: Final = "vllm:num_requests_running"
_WAITING: Final = "vllm:num_requests_waiting"
_QUERIES: Final = "vllm:prefix_cache_queries_total"
_HITS: Final = "vllm:prefix_cache_hits_total"
_POD_NAMES: Final = frozenset((_RUNNING, _WAITING, _QUERIES, _HITS))


@dataclass(frozen=True, slots=True)
class Pages:
    """Where to read. Each may be empty."""

    processors: Sequence[str] = ()
    """URLs; counters of all are added up."""
    engines: Mapping[str, str] = field(default_factory=dict)
    """URLs by pod."""


class Sampler:
    """Reads at once and every `interval_s` until `finish`, which reads a last time."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        pages: Pages,
        clock: Callable[[], float],
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`clock`: seconds since the start of the run."""
        self._session = session
        self._pages = pages
        self._clock = clock
        self._interval_s = interval_s
        self._read: list[tuple[float, list[str], dict[str, str]]] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read once, and begin to read at intervals."""
        await self._look()
        self._task = asyncio.create_task(self._run())

    async def finish(self) -> list[Sample]:
        """Read a last time; all that was read, in order. A page that could not be had is left out,
        and so is a moment without any."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._look()
        return [sample(at_s, ours, engines) for at_s, ours, engines in self._read]

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self._look()

    async def _look(self) -> None:
        at_s = self._clock()
        ours, engines = self._pages.processors, dict(self._pages.engines)
        urls = [*ours, *engines.values()]
        pages = await asyncio.gather(*(self._page(url) for url in urls))
        found = {
            pod: page
            for pod, page in zip(engines, pages[len(ours) :], strict=True)
            if page is not None
        }
        told = [page for page in pages[: len(ours)] if page is not None]
        if told or found:
            self._read.append((at_s, told, found))

    async def _page(self, url: str) -> str | None:
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self._session.get(url, timeout=_TIMEOUT) as reply:
                if reply.status == 200:
                    return await reply.text()
        return None


def sample(at_s: float, processors: Sequence[str], engines: Mapping[str, str]) -> Sample:
    """What these pages say. Pure."""
    reasons: Counter[str] = Counter()
    bases: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for page in processors:
        for family in text_string_to_metric_families(page):
            for one in family.samples:
                if one.name == _REASONS:
                    reasons[one.labels.get("selection", "")] += int(one.value)
                elif one.name == _BASES:
                    bases[one.labels.get("basis", "")] += int(one.value)
                elif one.name in (_PROMPT, _MATCHED):
                    sums[one.name] += int(one.value)
    return Sample(
        at_s,
        dict(reasons),
        dict(bases),
        sums.get(_PROMPT),
        sums.get(_MATCHED),
        {pod: _pod_sample(page) for pod, page in engines.items()},
    )


def _pod_sample(page: str) -> PodSample:
    sums: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for one in family.samples:
            if one.name in _POD_NAMES:
                sums[one.name] += int(one.value)
    return PodSample(sums[_RUNNING], sums[_WAITING], sums.get(_QUERIES), sums.get(_HITS))
