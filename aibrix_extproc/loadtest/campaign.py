"""One load test: the same sessions under one strategy after another, and the null run.

Owns the order of what is done and turns what was sent into results. What is asked comes from
`workloads`, what the results mean stands in `report`.
"""

import asyncio
import gc
import resource
from array import array
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

import aiohttp

from aibrix_extproc.errors import ExtprocError
from aibrix_extproc.loadtest import ceiling
from aibrix_extproc.loadtest.client import ChatClient
from aibrix_extproc.loadtest.own_stack import StackSizes, own_stack
from aibrix_extproc.loadtest.report.results import NullRun, RequestResult, RunResult
from aibrix_extproc.loadtest.runner import OpenLoop, Sent
from aibrix_extproc.loadtest.samples import Pages, Sampler
from aibrix_extproc.loadtest.talk import Style
from aibrix_extproc.loadtest.usage import CpuUse
from aibrix_extproc.routing.strategies import STRATEGIES
from aibrix_extproc.workloads.sessions import Session

STRATEGY_HEADER: Final = "routing-strategy"
AS_SET: Final = "as set"
"""The name of a run that asks for no strategy."""
_FILES_BESIDE: Final = 200
"""Files that are open beside one for each request."""
_RETRY_S: Final = 0.1

Watch = Callable[[str, OpenLoop], AbstractContextManager[None]]
"""Shows the progress of a run: its name and the run in."""


class TargetFailed(ExtprocError):
    """The gateway cannot be asked; the message says what it answered."""


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway that runs already."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 10.0
    """For it to answer at all."""
    pages: Pages = field(default_factory=Pages)


@dataclass(frozen=True, slots=True)
class Job:
    """Everything of a load test but how it is shown."""

    sessions: Sequence[Session]
    strategies: Sequence[str]
    """At least one; `AS_SET` leaves it to the gateway."""
    target: Target | StackSizes
    seed: int
    model: str | None = None
    max_open: int = 2000
    ignore_eos: bool = False
    null_run: bool = True


@dataclass(slots=True)
class Found:
    """What a load test found, as far as it came."""

    model: str = ""
    runs: list[RunResult] = field(default_factory=list)
    started_unix_s: float = 0.0
    null_run: NullRun | None = None
    logs: list[str] = field(default_factory=list)
    """Folders that are kept because requests failed."""


class Campaign:
    """One load test. `run` it once; `stop` gives up what is under way, and what was to come."""

    def __init__(self, job: Job, watch: Watch) -> None:
        self._job = job
        self._watch = watch
        self._loop: OpenLoop | None = None
        self._stopped = False

    def stop(self) -> None:
        """End the run under way, and do no other."""
        self._stopped = True
        if self._loop is not None:
            self._loop.stop()

    async def run(self) -> Found:
        """Each strategy, then the null run. Raises ProcessFailed, TargetFailed."""
        found = Found()
        _allow_files(self._job.max_open + _FILES_BESIDE)
        gc.collect()
        gc.freeze()  # the sessions stay: no collection needs to look at them while requests wait
        async with _session() as session:
            for number, strategy in enumerate(self._job.strategies):
                if not self._stopped:
                    await self._strategy(session, number, strategy, found)
            if self._job.null_run and not self._stopped:
                style = Style(found.model)
                chunks = _chunks(found.runs)
                found.null_run = await ceiling.measure(session, self._job.sessions, style, chunks)
        return found

    async def _strategy(
        self, session: aiohttp.ClientSession, number: int, strategy: str, found: Found
    ) -> None:
        async with self._gateway(session, strategy, found) as target:
            if self._stopped:
                return
            client = ChatClient(session, target.url, target.headers)
            found.model = found.model or self._job.model or await _model(client, target)
            style = Style(found.model, self._salt(number), self._job.ignore_eos)
            run, started_s = await self._send(session, client, style, strategy, target.pages)
            found.started_unix_s = found.started_unix_s or started_s
            found.runs.append(run)

    def _salt(self, number: int) -> str:
        """A stack of its own has empty caches, and each run asks the very same; any other knows
        what the run before has asked."""
        own = isinstance(self._job.target, StackSizes)
        return f"{self._job.seed}" if own else f"{self._job.seed} {number}"

    async def _send(
        self,
        session: aiohttp.ClientSession,
        client: ChatClient,
        style: Style,
        strategy: str,
        pages: Pages,
    ) -> tuple[RunResult, float]:
        self._loop = loop = OpenLoop(client.send, style, self._job.max_open)
        sampler = Sampler(session, pages, lambda: loop.now_s)
        await sampler.start()
        use = CpuUse()
        with self._watch(strategy, loop):
            await loop.run(self._job.sessions)
        run = RunResult(
            strategy,
            [result(sent) for sent in loop.sent],
            looks_at_prompts=_looks_at_prompts(strategy),
            duration_s=max((_ended_s(sent) for sent in loop.sent), default=0.0),
            interrupted=self._stopped,
            generator_cpu_share=use.generator_share(),
            machine_cpu_share=use.machine_share(),
        )
        return replace(run, samples=await sampler.finish()), loop.started_unix_s

    @asynccontextmanager
    async def _gateway(
        self, session: aiohttp.ClientSession, strategy: str, found: Found
    ) -> AsyncIterator[Target]:
        target = self._job.target
        if isinstance(target, Target):
            named = {} if strategy == AS_SET else {STRATEGY_HEADER: strategy}
            yield replace(target, headers={**target.headers, **named})
            return
        async with own_stack(session, target, strategy) as stack:
            pages = Pages((stack.processor_metrics_url,), stack.engine_metrics_urls)
            yield Target(stack.url, pages=pages)
            failed = found.runs and any(request.error for request in found.runs[-1].requests)
            if failed and not self._stopped:
                found.logs.append(str(stack.processes.keep_logs()))


def result(sent: Sent) -> RequestResult:
    """One request as the report wants it."""
    outcome = sent.outcome
    first_s = None if outcome.ttft_s is None else sent.sent_s + outcome.ttft_s
    return RequestResult(
        session=sent.session,
        turn=sent.turn,
        intended_s=sent.intended_s,
        sent_s=sent.sent_s,
        ended_s=_ended_s(sent),
        first_token_s=first_s,
        gaps_s=array("d", (after - before for before, after in pairwise(outcome.text_s))),
        error=outcome.error,
        prompt_tokens=outcome.prompt_tokens,
        cached_tokens=outcome.cached_tokens,
        answer_tokens=outcome.answer_tokens,
        pod=outcome.pod,
        matched_tokens=outcome.matched_tokens,
    )


def _ended_s(sent: Sent) -> float:
    return sent.sent_s + sent.outcome.duration_s


def _chunks(runs: Sequence[RunResult]) -> int:
    """Pieces of text in an answer, as they were seen, rounded up."""
    answered = [
        1 + len(request.gaps_s)
        for run in runs
        for request in run.requests
        if request.first_token_s is not None
    ]
    return -(-sum(answered) // len(answered)) if answered else 1


def _looks_at_prompts(strategy: str) -> bool | None:
    """None: not one of ours."""
    factory = STRATEGIES.get(strategy)
    return None if factory is None else bool(getattr(factory, "needs_tokens", True))


async def _model(client: ChatClient, target: Target) -> str:
    """What the gateway lists, once it answers. Raises TargetFailed after `wait_s`."""
    deadline = asyncio.get_running_loop().time() + target.wait_s
    while True:
        try:
            return await client.first_model()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise TargetFailed(f"{target.url}/v1/models: {error}") from None
        await asyncio.sleep(_RETRY_S)


def _allow_files(wanted: int) -> None:
    """Raise the limit of open files as far as the system lets, and as far as is needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
