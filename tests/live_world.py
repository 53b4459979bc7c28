"""A made-up fleet for the live page: its own server and hub, with what is seen made up.

Seeded: one seed, one fleet. Used by the browser's tests and by `make screenshot`.
"""

import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from aibrix_extproc.admin.debug import DebugServer
from aibrix_extproc.admin.insight import InsightPages
from aibrix_extproc.admin.live.hub import Hub
from aibrix_extproc.admin.live.pages import LivePages
from aibrix_extproc.admin.live.rows import Seen
from aibrix_extproc.decisions import DecisionRecord, DecisionRing
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.errors import ModelNotFound
from aibrix_extproc.extproc.decides import RouteRequest
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.manager import SourceView
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.types import Candidate, Decision, Load, Scored
from aibrix_extproc.settings import Settings

HOSTILE = (
    'default/<img src=x onerror="document.title=1">',
    "default/\u202egnihton\u202c\x1b[31m",
    "default/" + "very-long-" * 40,
)
HOSTILE_MODEL = "<script>document.title=1</script>&amp;"


class LiveWorld:
    """What there is to see. Change `views` and the rest at will."""

    def __init__(self, pods: int = 3, seed: int = 7) -> None:
        self.rng = random.Random(seed)
        self.about = {
            "version": "0.1.0", "strategy": "prefix-cache", "index": "core", "event_sync": True,
            "strategies": ["prefix-cache", "least-request", "random"],
        }  # fmt: skip
        self.metrics = Metrics()
        self.ring = DecisionRing()
        self.notes: tuple[str, ...] = ()
        self.hub: Hub | None = None
        """While it is served."""
        self.alive: list[str] = []
        """Addresses that are asked whether they answer: none of the made-up ones."""
        self.pods = [_pod(f"default/vllm-{number}", number) for number in range(pods)]
        self.views = [self._view(number, pod) for number, pod in enumerate(self.pods)]
        self.loads = {view.source: self._load() for view in self.views}

    # -- what the hub asks --------------------------------------------------------------------

    async def look(self) -> Seen:
        return Seen(
            views=tuple(self.views),
            pods={pod.key: pod for pod in self.pods},
            out=frozenset(),
            loads=self.loads,
            open_requests=sum(load.requests for load in self.loads.values()),
            notes=self.notes,
        )

    def addresses(self) -> Sequence[str]:
        return self.alive

    def decisions(self, last: DecisionRecord | None) -> list[DecisionRecord]:
        return self.ring.since(last)

    async def explain(self, request: RouteRequest) -> dict[str, Any]:
        if b"unknown" in request.body:
            raise ModelNotFound("unknown")
        record = self.decision(time.time())
        chosen = record.decision.chosen
        load = {"requests": 1, "prefill_tokens": 0, "decoding": 1}
        candidates = [
            {
                "pod": scored.candidate.pod.key, "rank": 0, "reusable_tokens": 0, "score": 1.0,
                "load": load,
            }
            for scored in record.decision.ranking
        ]  # fmt: skip
        return {
            "outcome": "picked", "reason": "prefix", "prompt_tokens": 1200, "tokens_known": True,
            "fallback": None, "strategy": "prefix-cache", "candidates": candidates,
            "model": chosen.candidate.pod.model,
        }  # fmt: skip

    # -- making it up -------------------------------------------------------------------------

    def rename(self, number: int, key: str, model: str = "llama-3-8b") -> None:
        """Give a pod another name, and so another source."""
        pod = _pod(key, number, model)
        self.pods[number] = pod
        source = max(view.source for view in self.views) + 1
        self.views[number] = replace(
            self.views[number], pod=key, model=model, source=source, sequence=1
        )

    def change(self, number: int, **fields: Any) -> None:
        """Change what is known of a source."""
        self.views[number] = replace(self.views[number], **fields)

    def trouble(self) -> None:
        """Some of a large fleet are never well."""
        self.change(3, connected=False)
        self.change(17, state=SourceState.SYNCING, usable=False)
        self.change(41, state=SourceState.PARTIAL)
        self.change(77, state=SourceState.LOST, usable=False, placements=0, lag_s=None)
        self.pods[120] = replace(self.pods[120], ready=False)

    def decide(self, seconds: int = 120, per_s: int = 4, before_s: float = 0.0) -> None:
        """Decisions of the last seconds."""
        now = time.time() - before_s
        for number in range(seconds * per_s):
            self.ring.add(self.decision(now - seconds + (number + 1) / per_s))

    def decision(self, at_s: float) -> DecisionRecord:
        """One that fits the time: the longer it has run, the more is held."""
        rng = self.rng
        tokens = rng.randrange(700, 4200)
        warm = min(0.8, 0.35 + 0.45 * rng.random() + 0.1 * (at_s % 120) / 120)
        held = int(tokens * warm) // 16 * 16
        views = rng.sample(range(len(self.views)), min(5, len(self.views)))
        ranking = tuple(
            Scored(
                Candidate(self.views[number].source, self.pods[number], 0),
                held if place == 0 else held // (4 * place) // 16 * 16,
                Load(place + 1, place * 480, place),
                float(tokens - (held // 4 if place else held) + place * 300),
            )
            for place, number in enumerate(views)
        )  # fmt: skip
        reason = "prefix" if rng.random() < 0.85 else "load"
        return DecisionRecord(
            at_s, max(0.0004, rng.lognormvariate(-6.6, 0.5)), f"{rng.getrandbits(64):016x}", None,
            self.pods[views[0]].model, tokens, True, None, False, len(self.views),
            Decision("prefix-cache", reason, ranking),
        )  # fmt: skip

    def _view(self, number: int, pod: Pod) -> SourceView:
        return SourceView(
            source=number + 1,
            pod=pod.key,
            rank=0,
            model=pod.model,
            state=SourceState.EXACT,
            usable=True,
            stale=False,
            connected=True,
            sequence=self.rng.randrange(40_000),
            lag_s=self.rng.uniform(0.0004, 0.012),
            placements=self.rng.randrange(12_000, 60_000),
            full=False,
            pending_bytes=0,
            event_endpoint="tcp://10.0.0.1:5557",
        )

    def _load(self) -> Load:
        requests = self.rng.randrange(0, 14)
        return Load(requests, self.rng.randrange(0, 5000) if requests else 0, requests // 2)


def _pod(key: str, number: int, model: str = "llama-3-8b") -> Pod:
    namespace, _, name = key.partition("/")
    address = f"10.0.{number // 250}.{number % 250 + 1}:8000"
    return Pod(namespace, name, f"uid-{number}", address, model)


@asynccontextmanager
async def live_server(world: LiveWorld) -> AsyncIterator[str]:
    """The URL of a debug port that shows this world."""
    hub = world.hub = Hub(world, world.metrics)
    insight = InsightPages(_NoViews(), world, 100_000)
    server = DebugServer(Settings(debug_address="127.0.0.1:0"), [LivePages(hub), insight])
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await hub.close()
        await server.close()


class _NoViews:
    def views(self) -> tuple[SourceView, ...]:
        return ()
