"""The routes of the live page: `/`, its parts below `/live/`, and the stream of what happens.

Owns HTTP: headers, files, one stream for each viewer. The page's files lie in `static/` as they are
served; it loads nothing else, and changes nothing but by `/debug/explain`, which changes nothing.
"""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Final

from aiohttp import web

from aibrix_extproc.admin.guard import REPLY_HEADERS
from aibrix_extproc.admin.http import json_reply
from aibrix_extproc.admin.live.hub import MAX_VIEWERS, Hub, TooManyViewers, Viewer
from aibrix_extproc.admin.pages import error_page

STREAM: Final = "/live/events"
_TYPES: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_RECONNECT: Final = b"retry: 1000\n\n"
_SEND_BUFFER_BYTES: Final = 128 * 1024
"""Of the kernel, for each viewer: what one who does not read may hold beside his queue."""
_UNTAKEN_MS: Final = 10_000
"""A viewer whose machine has taken nothing for so long is gone."""


class LivePages:
    """The page and its stream."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        folder = resources.files(__package__) / "static"
        self._files = {
            file.name: file.read_bytes()
            for file in folder.iterdir()
            if file.name.rpartition(".")[2] in _TYPES
        }

    def routes(self) -> Sequence[web.RouteDef]:
        parts = [name for name in sorted(self._files) if name != "index.html"]
        return [
            web.get("/", self._file("index.html")),
            *(web.get(f"/live/{name}", self._file(name)) for name in parts),
            web.get(STREAM, self._stream),
        ]

    def _file(self, name: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        body, kind = self._files[name], _TYPES[name.rpartition(".")[2]]

        async def serve(_request: web.Request) -> web.StreamResponse:
            return web.Response(body=body, content_type=kind, charset="utf-8")

        return serve

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events, until the viewer or this process leaves."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the viewer has left")
        try:
            viewer = self._hub.join(transport.abort)
        except TooManyViewers:
            page = error_page(
                f"{MAX_VIEWERS} look at this page already: close one.",
                "too_many_viewers",
                "server_error",
            )
            return json_reply(page, 503, {"Retry-After": "10"})
        try:
            return await self._feed(request, viewer)
        finally:
            self._hub.leave(viewer)

    async def _feed(self, request: web.Request, viewer: Viewer) -> web.StreamResponse:
        _bound_buffers(request)
        # The guard sets its headers when a reply is complete, which is too late for this one.
        response = web.StreamResponse(headers={**REPLY_HEADERS, "X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        with contextlib.suppress(ConnectionError):  # he has left, as viewers do
            await response.prepare(request)
            await response.write(_RECONNECT)
            while (message := await viewer.queue.get()) is not None:
                await response.write(message)
        return response


def _bound_buffers(request: web.Request) -> None:
    """Let the kernel hold little for a viewer, and not for long: who does not read is cut off."""
    one = request.get_extra_info("socket")
    if one is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNTAKEN_MS)
