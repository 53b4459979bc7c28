"""`GET /snapshot` on the debug port: what this replica's index holds, for one that starts.

Owns the route and its bounds: one at a time, for so long. What is sent is `snapshot.format`'s:
keys from which no token can be read back. Whoever knows a prompt can find out where it is cached.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

from aiohttp import web

from aibrix_extproc.admin.guard import REPLY_HEADERS

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 120.0
"""Of one reply; a replica that reads slower gets no end."""


class Streams(Protocol):
    """The snapshots of this process, as far as this page sees them."""

    def stream(self) -> AsyncIterator[bytes]: ...


class SnapshotPage:
    """The page."""

    def __init__(self, snapshots: Streams) -> None:
        self._snapshots = snapshots
        self._sending = asyncio.Lock()

    def routes(self) -> Sequence[web.RouteDef]:
        return [web.get("/snapshot", self._send, allow_head=False)]

    async def _send(self, request: web.Request) -> web.StreamResponse:
        """One record at a time in memory. Where it fails halfway, the end is missing."""
        reply = web.StreamResponse(
            headers={"Content-Type": "application/octet-stream", **REPLY_HEADERS}
        )
        async with self._sending:
            await reply.prepare(request)
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    async for part in self._snapshots.stream():
                        await reply.write(part)
                    await reply.write_eof()
            except ConnectionError:
                raise  # the one who asked has left
            except Exception:  # too late for another reply: what was sent must not look whole
                log.exception("a snapshot for %s was cut off", request.remote)
                if request.transport is not None:
                    request.transport.abort()
        return reply
