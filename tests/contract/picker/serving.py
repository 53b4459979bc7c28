"""Starts this server as the real process, with fake engines and an endpoints file."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.stack.processes import Processes
from aibrix_extproc.stack.start import start_server, write_endpoints
from tests.contract.picker.exchange import Target

_ENGINES = 3


@asynccontextmanager
async def this_server(timeout_s: float = 10.0) -> AsyncIterator[Target]:
    """This server, ready, with three pods of the model `tiny`."""
    async with AsyncExitStack() as stack:
        processes = stack.enter_context(Processes())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        engines = [FakeEngine(EngineConfig(name=f"engine-{n}")) for n in range(_ENGINES)]
        for engine in engines:
            await engine.start()
            stack.push_async_callback(engine.close)
        path = processes.folder / "endpoints.yaml"
        write_endpoints(
            path,
            [
                {"name": e.config.name, "model": e.config.model, "address": e.address}
                for e in engines
            ],
        )
        environment = {
            "AIBRIX_EXTPROC_ENDPOINTS_FILE": str(path),
            "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER": "true",
        }
        server = await start_server(processes, session, environment)
        pods = tuple(engine.address for engine in engines)
        yield Target(server.grpc_address, "tiny", pods, timeout_s)
