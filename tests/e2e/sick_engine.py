"""A fake engine as a process whose tokenizer can be told to be sick: `POST /sick?mode=hang`.

The one argument is a JSON object of `EngineConfig`'s fields. What it prints is what `fake-vllm`
does. Imports nothing of the tests, so that it runs as a script.
"""

import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable

from aiohttp import web

from aibrix_extproc.fakes.config import EngineConfig, TimeModel
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.fakes.server import EngineServer

WELL = "well"
SLOW_S = 0.6
GARBAGE = (b"", b"<html>502</html>", b'{"tokens": "many"}', b'{"tokens": [-1]}', b"[" * 5000)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Sickness:
    """What becomes of a call of `/tokenize`."""

    def __init__(self) -> None:
        self.mode = WELL
        self._turn = asyncio.Event()

    async def set(self, request: web.Request) -> web.Response:
        self.mode = request.query["mode"]
        self._turn.set()
        self._turn = asyncio.Event()
        return web.Response()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        mode = self.mode if request.path == "/tokenize" else WELL
        if mode == "flap":
            mode = random.choice((WELL, "error", "hang", "garbage", "cut"))
        if mode == "hang":
            await self._turn.wait()
        elif mode == "slow":
            await asyncio.sleep(SLOW_S)
        elif mode == "error":
            return web.Response(status=500)
        elif mode == "garbage":
            return web.Response(body=random.choice(GARBAGE), content_type="application/json")
        elif mode == "cut" and request.transport is not None:
            request.transport.close()
        return await handler(request)


async def main(fields: dict[str, object]) -> None:
    sickness, usual = Sickness(), EngineServer.application

    def application(server: EngineServer) -> web.Application:
        app = usual(server)
        app.middlewares.insert(0, sickness.middleware)
        app.router.add_post("/sick", sickness.set)
        return app

    EngineServer.application = application  # type: ignore[method-assign]
    config = EngineConfig(**fields, time=TimeModel(decode_ms_per_token=5))  # type: ignore[arg-type]
    async with FakeEngine(config) as engine:
        print(json.dumps(engine.described()), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
