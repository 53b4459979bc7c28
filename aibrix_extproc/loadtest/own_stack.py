"""The gateway that a load test starts for itself: fake engines, the processor and a real Envoy.

Owns its sizes and settings. How its parts are started is `stack`'s; what is sent to it is the
runner's. Each strategy gets a stack of its own, so that no cache is warm.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from aibrix_extproc.stack import envoy_config, start
from aibrix_extproc.stack.processes import Processes


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """What each fake engine is told."""

    blocks: int = 4096
    block_size: int = 16
    prefill_us_per_token: float = 50.0
    decode_ms_per_token: float = 10.0
    tokens_per_chunk: int = 1
    """While an engine only decodes."""

    def options(self) -> list[str]:
        """For `fake-vllm`. Answers go on to the limit of their request."""
        return [
            *("--num-blocks", str(self.blocks)),
            *("--block-size", str(self.block_size)),
            *("--prefill-us-per-token", str(self.prefill_us_per_token)),
            *("--decode-ms-per-token", str(self.decode_ms_per_token)),
            *("--decode-group", str(self.tokens_per_chunk)),
            *("--answer-tokens", "0"),
        ]


@dataclass(frozen=True, slots=True)
class StackSizes:
    """The whole stack."""

    pods: int
    engine: EngineSizes
    envoy: Path
    template: Path


@dataclass(frozen=True, slots=True)
class OwnStack:
    """A running one."""

    url: str
    """For clients: Envoy's."""
    processor_metrics_url: str
    engine_metrics_urls: dict[str, str]
    """By pod."""
    processes: Processes


_SETTINGS: Final = {
    "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED": "true",
    "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER": "true",
    # So that each answer says which pod it came from, and what was expected to be reused.
    "AIBRIX_EXTPROC_DEBUG_HEADERS": "true",
}


@asynccontextmanager
async def own_stack(
    session: aiohttp.ClientSession, sizes: StackSizes, strategy: str
) -> AsyncIterator[OwnStack]:
    """A stack that is ready, and gone at the end of the block. Raises ProcessFailed."""
    with Processes() as processes:
        engines = await _engines(processes, sizes)
        endpoints = processes.folder / "endpoints.yaml"
        start.write_endpoints(endpoints, [engine.endpoint() for engine in engines])
        environment = _SETTINGS | {
            "ROUTING_ALGORITHM": strategy,
            "AIBRIX_EXTPROC_ENDPOINTS_FILE": str(endpoints),
        }
        server = await start.start_server(processes, session, environment)
        config = envoy_config.render(
            sizes.template,
            listen="127.0.0.1:0",
            admin="127.0.0.1:0",
            extproc_addresses=[server.grpc_address],
            engine_addresses=[engine.address for engine in engines],
        )
        envoy = await start.start_envoy(processes, session, sizes.envoy, config)
        yield OwnStack(
            envoy.url,
            f"{server.admin_url}/metrics",
            {engine.name: f"{engine.url}/metrics" for engine in engines},
            processes,
        )


async def _engines(processes: Processes, sizes: StackSizes) -> Sequence[start.Engine]:
    names = [f"pod-{number}" for number in range(1, sizes.pods + 1)]
    options = sizes.engine.options()
    return await asyncio.gather(*(start.start_engine(processes, name, options) for name in names))
