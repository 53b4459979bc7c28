"""A TCP relay in front of one port, which can spoil what comes back through it."""

import asyncio
import contextlib
import random
from enum import StrEnum
from typing import Self


class Spoils(StrEnum):
    """What becomes of bytes on their way from the port to the one who connected."""

    NOTHING = "nothing"
    CORRUPT = "corrupt"
    """Here and there a byte is another."""
    SILENT = "silent"
    """Nothing arrives, and the connection stands."""
    CUT = "cut"
    """Every connection is ended, old and new."""


class Relay:
    """`port` leads to `target`, on the loopback. Used on one event loop."""

    def __init__(self, target: int, rng: random.Random) -> None:
        self.target = target
        self.port = 0
        self._rng = rng
        self._spoils = Spoils.NOTHING
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        self._cut()

    def spoil(self, how: Spoils) -> None:
        """From now on. What was held back by SILENT is lost with its connections."""
        if how is Spoils.CUT or self._spoils is Spoils.SILENT:
            self._cut()
        self._spoils = how

    def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._spoils is Spoils.CUT:
                return
            there_reader, there = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(there)
            try:
                back = asyncio.create_task(self._pump(there_reader, writer, spoils=True))
                forth = asyncio.create_task(self._pump(reader, there, spoils=False))
                await asyncio.wait((back, forth), return_when=asyncio.FIRST_COMPLETED)
                back.cancel()
                forth.cancel()
                await asyncio.gather(back, forth, return_exceptions=True)
            finally:
                self._writers.discard(there)
                there.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # the engine is away, or all is over: asyncio's server must not see why
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, spoils: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if spoils and self._spoils is Spoils.SILENT:
                    continue
                if spoils and self._spoils is Spoils.CORRUPT:
                    data = self._corrupted(data)
                writer.write(data)
                await writer.drain()

    def _corrupted(self, data: bytes) -> bytes:
        spoilt = bytearray(data)
        for _ in range(1 + len(spoilt) // 200):
            spoilt[self._rng.randrange(len(spoilt))] ^= 1 << self._rng.randrange(8)
        return bytes(spoilt)
