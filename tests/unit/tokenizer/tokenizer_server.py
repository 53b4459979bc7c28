"""A real HTTP server on the loopback that answers as vLLM's `/tokenize` and `/render` do."""

import asyncio
import json
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def ids_of(body: dict[str, Any]) -> list[int]:
    """The stand-in for a tokenizer: one id per byte of the prompt or of its messages."""
    text = body.get("prompt") or json.dumps(body["messages"])
    return list(text.encode())


def expected(body: dict[str, Any]) -> "array[int]":
    return array("I", ids_of(body))


class TokenizerServer:
    """Keeps every request; a test may replace `tokenize`, `render`, or hold answers back."""

    def __init__(self, models: set[str]) -> None:
        self.models = models
        self.requests: list[tuple[str, bytes]] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.tokenize: Handler = self._tokenize
        self.render: Handler = self._render
        self.address = ""

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path, await request.read()))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if request.content_type != "application/json":
            return self.error(400, "Unsupported Media Type: Only 'application/json' is allowed")
        if request.path == "/tokenize":
            return await self.tokenize(request)
        return await self.render(request)

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["model"] not in self.models:
            return self.error(404, f"The model `{body['model']}` does not exist.")
        ids = ids_of(body)
        return web.json_response(
            {"count": len(ids), "max_model_len": 1024, "tokens": ids, "token_strs": None}
        )

    async def _render(self, request: web.Request) -> web.Response:
        return web.json_response({"detail": "Not Found"}, status=404)

    async def rendered(self, request: web.Request) -> web.Response:
        """A render handler for an engine that offers it; ids are told apart by a leading 7."""
        body = await request.json()
        if body["model"] not in self.models:
            return self.error(404, f"The model `{body['model']}` does not exist.")
        one = {"request_id": "x", "token_ids": [7, *ids_of(body)], "features": None}
        return web.json_response([one] if "prompt" in body else one)

    @staticmethod
    def error(status: int, message: str) -> web.Response:
        error = {"message": message, "type": "Error", "param": None, "code": status}
        return web.json_response({"error": error}, status=status)


@asynccontextmanager
async def tokenizer_server(*models: str, port: int = 0) -> AsyncIterator[TokenizerServer]:
    server = TokenizerServer(set(models) or {"m"})
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/{path:.*}", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    server.address = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        server.gate.set()
        await runner.cleanup()
