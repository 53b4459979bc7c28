"""One POST to one tokenizer, bounded in time and size.

Owns the HTTP connections and turns every way in which a call can go wrong into a `CallFailed`.
It knows no prompt, no breaker and no other endpoint: which to ask, and whether again, is for
`pool`.
"""

import io
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from aibrix_extproc.tokenizer.types import Reason

CONNECT_TIMEOUT_S: Final = 0.5
"""Within a cluster a connection takes about a millisecond; a dead pod's address answers never."""

KEEP_ALIVE_S: Final = 4.0
"""Below the 5 s after which vLLM's server closes an idle connection, so that it seldom does so
just as a request is sent."""

CONNECTIONS_PER_ENDPOINT: Final = 64

REPLY_BASE_BYTES: Final = 4 * 1024 * 1024
REPLY_BYTES_PER_BODY_BYTE: Final = 8
"""A token takes at most eight bytes in a reply, and at least one of the body, or of a template."""

_FAILURES: Final = (aiohttp.ClientError, OSError, ValueError)
_CHUNKED_ABOVE_BYTES: Final = 1024 * 1024  # aiohttp would write it in one go, and warn
_HEADERS: Final = {
    "Content-Type": "application/json",  # vLLM refuses any other
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": "aibrix-extproc",
}


class CallFailed(Exception):
    """A call without a reply that could be read; the detail is for the log, it has no prompt."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete reply."""

    status: int
    body: bytes


class Client:
    """Reuses connections to all endpoints. Made on the event loop that uses it."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                limit_per_host=CONNECTIONS_PER_ENDPOINT,
                keepalive_timeout=KEEP_ALIVE_S,
            ),
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def post(self, url: URL, body: bytes) -> Reply:
        """Send `body`, JSON, and read the reply whole, whatever its status.

        Raises CallFailed. Bounded in time by the caller. A connection that was closed before
        any reply is tried once more: mostly it was an idle one that the server had given up.
        """
        try:
            return await self._post(url, body)
        except _FAILURES as error:
            if not _is_stale_connection(error):
                raise _call_failed(error) from None
        try:
            return await self._post(url, body)
        except _FAILURES as error:
            raise _call_failed(error) from None

    async def _post(self, url: URL, body: bytes) -> Reply:
        data = body if len(body) <= _CHUNKED_ABOVE_BYTES else io.BytesIO(body)
        limit_bytes = REPLY_BASE_BYTES + REPLY_BYTES_PER_BODY_BYTE * len(body)
        async with self._session.post(url, data=data, allow_redirects=False) as response:
            return Reply(response.status, await _read(response, limit_bytes))


async def _read(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    chunks = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > limit_bytes:
            raise CallFailed(Reason.TOO_LARGE, f"more than {limit_bytes} bytes")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _is_stale_connection(error: Exception) -> bool:
    if isinstance(error, aiohttp.ClientConnectorError):
        return False
    return isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError))


def _call_failed(error: Exception) -> CallFailed:
    detail = f"{type(error).__name__}: {error}"[:200]
    if isinstance(error, TimeoutError):
        return CallFailed(Reason.TIMEOUT, f"no connection within {CONNECT_TIMEOUT_S} s")
    if isinstance(error, aiohttp.ClientConnectorError):
        return CallFailed(Reason.REFUSED, detail)
    if isinstance(error, (aiohttp.ClientResponseError, aiohttp.InvalidURL, ValueError)):
        return CallFailed(Reason.GARBAGE, detail)
    return CallFailed(Reason.DISCONNECTED, detail)
