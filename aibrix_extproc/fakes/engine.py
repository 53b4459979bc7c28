"""A whole fake engine in this process: ranks, publishers and the HTTP server, started and closed.

The command `fake-vllm` runs one; a test starts as many as it needs on free ports.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.rank import RankEngine
from aibrix_extproc.fakes.server import EngineServer
from aibrix_extproc.fakes.tokenizer import Tokenizer, WordTokenizer

_SHUTDOWN_S = 0.2
"""How long a close waits for open connections."""


class FakeEngine:
    """`await start()`, then `address` answers; `await close()` ends every request.

    Also an async context manager. `ranks` are the engine's insides: blocks, scheduler,
    publisher (with its faults).
    """

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer | None = None) -> None:
        self.config = config
        self.tokenizer = tokenizer or WordTokenizer()
        self.ranks: list[RankEngine] = []
        self.address = ""
        self._runner: web.AppRunner | None = None

    @property
    def event_ports(self) -> list[int]:
        """Bound event ports, by rank; empty without events."""
        return [rank.publisher.port for rank in self.ranks if rank.publisher]

    @property
    def replay_ports(self) -> list[int]:
        """Bound replay ports, by rank; empty without replay."""
        publishers = [rank.publisher for rank in self.ranks if rank.publisher]
        return [one.replay_port for one in publishers if one.replay_port is not None]

    async def start(self) -> "FakeEngine":
        """Bind every port and begin to answer. Raises OSError for a port in use."""
        config, seed = self.config, self.config.hash_seed
        try:
            for rank in range(config.data_parallel_size):
                rank_seed = secrets.randbits(64) if seed is None else seed + rank
                self.ranks.append(RankEngine(config, rank, rank_seed))
            application = EngineServer(config, self.tokenizer, self.ranks).application()
            self._runner = web.AppRunner(
                application,
                access_log=None,
                handler_cancellation=True,
                shutdown_timeout=_SHUTDOWN_S,
            )
            await self._runner.setup()
            site = web.TCPSite(self._runner, config.host, config.port)
            await site.start()
        except OSError:
            await self.close()
            raise
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"
        for engine in self.ranks:
            engine.start()
        return self

    async def close(self) -> None:
        """Stop at once; open answers end as aborted. Idempotent."""
        ranks, self.ranks = self.ranks, []
        for rank in ranks:
            await rank.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> "FakeEngine":
        return await self.start()

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def described(self) -> Mapping[str, Any]:
        """The line that the command prints when it is ready: names and bound ports."""
        return {
            "name": self.config.name,
            "model": self.config.model,
            "address": self.address,
            "event_ports": self.event_ports,
            "replay_ports": self.replay_ports,
        }
