"""The demo's runs: the same workload by each strategy through Envoy, and the yardstick.

Owns the sizes of the demo and the order of its runs. How it is started is `stack`'s, what the
figures mean is `report`'s.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from aibrix_extproc.demo import closed_loop, workload
from aibrix_extproc.demo.report import DemoReport, StrategyResult, Yardstick
from aibrix_extproc.demo.summary import Summary, ratio, summarise
from aibrix_extproc.loadtest.client import ChatClient, Outcome
from aibrix_extproc.stack import envoy_config, scrape, start
from aibrix_extproc.stack.processes import Processes

STRATEGIES: Final = ("random", "least-request", "prefix-cache")

Watch = Callable[[str, int], AbstractContextManager[closed_loop.OnOutcome]]
"""Shows the progress of a run: its name and number of requests in, a callback out."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the demo is.

    The workload has about 20,000 different tokens, its answers included. One cache of 300 blocks
    holds 4,800, and the three together most of what is asked for again: enough where each prefix
    is kept once, far too little where every engine gets a bit of everything.
    """

    shape: workload.Shape = field(default_factory=workload.Shape)
    engines: int = 3
    concurrency: int = 12
    blocks_per_engine: int = 300
    prefill_us_per_token: float = 150.0
    decode_ms_per_token: float = 5.0

    def engine_options(self) -> list[str]:
        """Options of each engine behind Envoy."""
        return [
            *("--num-blocks", str(self.blocks_per_engine)),
            *("--prefill-us-per-token", str(self.prefill_us_per_token)),
            *("--decode-ms-per-token", str(self.decode_ms_per_token)),
        ]


ENDLESS: Final = ("--num-blocks", "65536", "--time-scale", "0")
"""Options of the yardstick's engine: a cache that holds everything, and no waiting."""


_SETTLED_WITHIN_S: Final = 5.0
_SILENCE_LIMIT_S: Final = 20.0
"""Nothing here takes long: what is silent for longer hangs."""


async def compare(sizes: Sizes, seed: int, envoy: Path, template: Path, watch: Watch) -> DemoReport:
    """Run every strategy on a fresh stack, then the yardstick. Raises ProcessFailed."""
    began = time.monotonic()
    conversations = workload.build(sizes.shape, seed)
    results = [
        await _strategy(strategy, sizes, conversations, envoy, template, watch)
        for strategy in STRATEGIES
    ]
    yardstick = await _yardstick(sizes, conversations, watch)
    return DemoReport(tuple(results), yardstick, time.monotonic() - began)


async def _strategy(
    strategy: str,
    sizes: Sizes,
    conversations: Sequence[workload.Conversation],
    envoy: Path,
    template: Path,
    watch: Watch,
) -> StrategyResult:
    async with _session() as session:
        with Processes() as processes:
            engines = await _engines(processes, sizes)
            server = await _server(processes, session, engines, strategy)
            config = envoy_config.render(
                template,
                listen="127.0.0.1:0",
                admin="127.0.0.1:0",
                extproc_addresses=[server.grpc_address],
                engine_addresses=[engine.address for engine in engines],
            )
            gateway = await start.start_envoy(processes, session, envoy, config)
            client = ChatClient(session, gateway.url, silence_limit_s=_SILENCE_LIMIT_S)
            clients = await _send(client, strategy, sizes, conversations, sizes.concurrency, watch)
            if clients.errors:
                processes.keep_logs()
            figures = {e.name: await scrape.engine_figures(session, e.url) for e in engines}
            predicted, scheduled = await _predicted(session, server)
    return StrategyResult(strategy, clients, figures, predicted, scheduled)


async def _engines(processes: Processes, sizes: Sizes) -> list[start.Engine]:
    names = [f"engine-{number}" for number in range(1, sizes.engines + 1)]
    options = sizes.engine_options()
    return list(
        await asyncio.gather(*(start.start_engine(processes, name, options) for name in names))
    )


async def _server(
    processes: Processes,
    session: aiohttp.ClientSession,
    engines: Sequence[start.Engine],
    strategy: str,
) -> start.Server:
    endpoints = processes.folder / "endpoints.yaml"
    start.write_endpoints(endpoints, [engine.endpoint() for engine in engines])
    environment = {
        "ROUTING_ALGORITHM": strategy,
        "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED": "true",
        "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER": "true",
        "AIBRIX_EXTPROC_ENDPOINTS_FILE": str(endpoints),
    }
    return await start.start_server(processes, session, environment)


async def _predicted(
    session: aiohttp.ClientSession, server: start.Server
) -> tuple[float | None, float | None]:
    """As of the decision, and as of the engines' scheduling, which is known a moment later."""
    deadline = time.monotonic() + _SETTLED_WITHIN_S
    while True:
        found = await scrape.samples(session, f"{server.admin_url}/metrics")
        if not found.get(scrape.SCHEDULED_FOLLOWED) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.05)
    return (
        ratio(found.get(scrape.MATCHED_TOKENS, 0.0), found.get(scrape.PROMPT_TOKENS)),
        ratio(
            found.get(scrape.SCHEDULED_MATCHED_TOKENS, 0.0),
            found.get(scrape.SCHEDULED_PROMPT_TOKENS),
        ),
    )


async def _yardstick(
    sizes: Sizes, conversations: Sequence[workload.Conversation], watch: Watch
) -> Yardstick:
    """Straight to one engine: no Envoy, no processor, one request at a time."""
    async with _session() as session:
        with Processes() as processes:
            engine = await start.start_engine(processes, "endless", ENDLESS)
            client = ChatClient(session, engine.url, silence_limit_s=_SILENCE_LIMIT_S)
            clients = await _send(client, "yardstick", sizes, conversations, 1, watch)
            return Yardstick(clients, await scrape.engine_figures(session, engine.url))


async def _send(
    client: ChatClient,
    name: str,
    sizes: Sizes,
    conversations: Sequence[workload.Conversation],
    concurrency: int,
    watch: Watch,
) -> Summary:
    model = await client.first_model()
    began = time.monotonic()
    outcomes: list[Outcome]
    with watch(name, sizes.shape.requests) as on_outcome:
        outcomes = await closed_loop.run(client, model, conversations, concurrency, on_outcome)
    return summarise(outcomes, time.monotonic() - began)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
