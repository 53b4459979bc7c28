"""All that a decision needs, without Envoy."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from random import Random
from typing import Any

import aiohttp

from aibrix_extproc.decide import Decider
from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.extproc.decides import Picked, RouteRequest
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.pool import TokenizerPool

LEAST = {"routing-strategy": "least-request"}
LONG = " ".join(f"word{i}" for i in range(400))


class Rig:
    """All that a decision needs, without Envoy."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.shadow = False
        self.gate_open = False
        self.metrics = Metrics()
        self.registry = Registry(self.metrics)
        self.index = PrefixIndex()
        self.predictions = Predictions(settings.prediction_max_blocks)
        self.ledger = Ledger(settings.reservation_limit_s)
        self.manager = SourceManager(
            self.index, settings, self.metrics, self.predictions.drop, self.ledger.forget
        )
        self.registry.subscribe(self.manager.on_pod)
        self.tokenizer = TokenizerPool(settings, self.metrics)
        self.decider = Decider(
            settings,
            self.metrics,
            self.registry,
            self.manager,
            self.index,
            self.tokenizer,
            self.ledger,
            self.predictions,
            rng=Random(1),
            clock=clock,
            shadow=lambda: self.shadow,
            gate_open=lambda: self.gate_open,
        )

    async def pick(self, body: dict[str, Any], **more: Any) -> Picked:
        outcome = await self.decider.decide(request(body, **more))
        assert isinstance(outcome, Picked)
        return outcome

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def running(
    pods: Sequence[Pod] | None = (), clock: Callable[[], float] = time.monotonic, **settings: Any
) -> AsyncIterator[Rig]:
    """A rig with these pods; None: no listing has been complete yet."""
    rig = Rig(Settings(use_remote_tokenizer=True, **settings), clock)
    await rig.tokenizer.start()
    rig.manager.start_events()
    if pods is not None:
        rig.registry.replace(pods)
    try:
        yield rig
    finally:
        await rig.tokenizer.close()
        await asyncio.to_thread(rig.manager.close)


@contextlib.asynccontextmanager
async def engines(count: int) -> AsyncIterator[list[FakeEngine]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(FakeEngine(EngineConfig(name=f"e{i}")))
            for i in range(count)
        ]


def pod_of(engine: FakeEngine, **more: Any) -> Pod:
    rank = Rank(
        0,
        f"tcp://127.0.0.1:{engine.event_ports[0]}",
        f"tcp://127.0.0.1:{engine.replay_ports[0]}",
    )
    return Pod(
        "default",
        engine.config.name,
        "uid",
        engine.address,
        "tiny",
        **{"kv_events": True, "ranks": (rank,), **more},
    )


def plain_pod(name: str, **more: Any) -> Pod:
    """A pod that nobody can reach: for what needs no tokens."""
    return Pod("default", name, "uid", f"127.0.0.1:{9000 + len(name)}", "tiny", **more)


def request(
    body: dict[str, Any] | bytes, path: str = "/v1/completions", method: str = "POST", **more: Any
) -> RouteRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return RouteRequest(method, path, more.pop("headers", {}), raw, "id", **more)


def completion(prompt: str, model: str = "tiny") -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": 1}


async def ask(engine: FakeEngine, prompt: str) -> int:
    """Send a prompt straight to an engine; the tokens that it reused."""
    url = f"http://{engine.address}/v1/completions"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=completion(prompt)) as reply,
    ):
        usage = (await reply.json())["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])
