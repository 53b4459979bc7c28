"""HTTP calls and TCP connections, each with its own time-out and bounded answer.

Owns how a failure is told. Knows no engine and no page. Nothing is retried but what the caller
asks for again.
"""

import asyncio
import errno
import ssl
import time
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from aibrix_extproc.doctor.facts import Answer, Reached

_MAX_REPLY_BYTES: Final = 64 * 1024 * 1024
"""A config dump of a gateway with thousands of routes has tens of megabytes."""
_AT_ONCE: Final = 64


class Caller:
    """A client for all calls of one run; an async context manager."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Accept-Encoding": "identity", "User-Agent": "aibrix-extproc-doctor"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, url: str) -> Answer:
        """One GET."""
        return await self._call("GET", url, None)

    async def post(self, url: str, body: object) -> Answer:
        """One POST of JSON."""
        return await self._call("POST", url, body)

    async def _call(self, method: str, url: str, body: object) -> Answer:
        assert self._session is not None  # noqa: S101 - used within its block
        extra: dict[str, Any] = {} if body is None else {"json": body}
        try:
            async with self._slots, asyncio.timeout(self.timeout_s):
                begun = time.perf_counter()
                async with self._session.request(
                    method, url, allow_redirects=False, **extra
                ) as reply:
                    read = await _read(reply)
                    seconds = time.perf_counter() - begun
                    return Answer(reply.status, read, seconds=seconds)
        except TimeoutError:
            why = f"no answer within {self.timeout_s:g} s"
            return Answer(failure=why, reached=Reached.TIMEOUT, seconds=self.timeout_s)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(failure=_short(error), reached=_reached(error))


async def connect(
    host: str, port: int, timeout_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | Reached:
    """A TCP connection, or what became of it."""
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.open_connection(host, port)
    except TimeoutError:
        return Reached.TIMEOUT
    except OSError as error:
        return _reached(error)


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    read = bytearray()
    async for piece in reply.content.iter_any():
        read += piece
        if len(read) > _MAX_REPLY_BYTES:
            raise ValueError(f"more than {_MAX_REPLY_BYTES} bytes")
    return bytes(read)


def _reached(error: Exception) -> Reached:
    cause = getattr(error, "os_error", error)
    if isinstance(cause, ssl.SSLError):
        return Reached.OPEN
    if isinstance(cause, OSError) and cause.errno is not None:
        if cause.errno == errno.ECONNREFUSED:
            return Reached.REFUSED
        if cause.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, -2, -3, -5}:
            return Reached.UNREACHABLE
        if cause.errno == errno.ETIMEDOUT:
            return Reached.TIMEOUT
    if isinstance(error, aiohttp.ClientConnectorError):
        return Reached.UNREACHABLE
    return Reached.OPEN


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
