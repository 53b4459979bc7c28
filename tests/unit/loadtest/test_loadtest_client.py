"""What a client makes of an answer, against real HTTP servers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.loadtest.client import ChatClient
from tests.support import free_port

Handler = Callable[[web.Request], Any]
CHAT = [{"role": "user", "content": " ".join(f"w{n}" for n in range(100))}]


def chunk(text: str | None = None, **more: Any) -> str:
    delta = {"content": text} if text is not None else {"role": "assistant"}
    return f"data: {json.dumps({'choices': [{'delta': delta}], **more})}\n\n"


@asynccontextmanager
async def gateway(handler: Handler) -> AsyncIterator[ChatClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session:
            yield ChatClient(
                session, f"http://127.0.0.1:{runner.addresses[0][1]}/", silence_limit_s=0.2
            )
    finally:
        await runner.cleanup()


def streams(*parts: str, then: Callable[[web.Request], Any] | None = None) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part.encode())
        if then is not None:
            await then(request)
        return response

    return handle


async def test_an_engines_answer_is_read_to_its_end() -> None:
    async with FakeEngine(EngineConfig()) as engine, aiohttp.ClientSession() as session:
        client = ChatClient(session, f"http://{engine.address}")
        assert await client.first_model() == "tiny"
        first = await client.chat("tiny", CHAT, 8)
        again = await client.chat("tiny", CHAT, 8)
    assert first.error is None
    assert first.prompt_tokens > 100
    assert first.answer_tokens == 8
    assert first.answer
    assert first.cached_tokens == 0
    assert again.cached_tokens >= 96
    assert again.answer == first.answer


async def test_the_first_text_makes_the_ttft_not_the_role() -> None:
    parts = (chunk(), chunk("a"), chunk("b"), "data: [DONE]\n\n")
    async with gateway(streams(*parts)) as client:
        outcome = await client.chat("m", CHAT, 8)
    assert outcome.error is None
    assert outcome.answer == "ab"
    assert outcome.ttft_s is not None
    assert 0 < outcome.ttft_s <= outcome.duration_s
    assert outcome.cached_tokens is None


async def test_an_answer_without_text_has_no_ttft() -> None:
    async with gateway(streams(chunk(), "data: [DONE]\n\n")) as client:
        assert (await client.chat("m", CHAT, 8)).ttft_s is None


async def test_a_stream_without_its_end_is_an_error() -> None:
    async with gateway(streams(chunk("a"))) as client:
        assert (await client.chat("m", CHAT, 8)).error == "the stream ended early"


async def test_an_error_within_the_stream_is_an_error() -> None:
    broken = 'data: {"error": {"code": 500, "message": "x"}}\n\n'
    async with gateway(streams(chunk("a"), broken)) as client:
        assert (await client.chat("m", CHAT, 8)).error == "error in the stream (500)"


@pytest.mark.parametrize("data", ["no json", "[]", '{"choices": [{}]}', '{"x": 1}'])
async def test_another_format_is_an_error_and_no_crash(data: str) -> None:
    async with gateway(streams(f"data: {data}\n\n")) as client:
        assert (await client.chat("m", CHAT, 8)).error == "the stream is not OpenAI's"


async def test_a_refusal_is_told_by_its_status() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {}}, status=429)

    async with gateway(refuse) as client:
        assert (await client.chat("m", CHAT, 8)).error == "HTTP 429"


async def test_silence_is_an_error_after_its_limit() -> None:
    answered = asyncio.Event()

    async def hang(_: web.Request) -> None:
        await answered.wait()

    async with gateway(streams(chunk("a"), then=hang)) as client:
        outcome = await client.chat("m", CHAT, 8)
        answered.set()
    assert outcome.error == "silent for 0.2 s"


async def test_a_gateway_that_is_not_there_is_an_error() -> None:
    async with aiohttp.ClientSession() as session:
        outcome = await ChatClient(session, f"http://127.0.0.1:{free_port()}").chat("m", CHAT, 8)
    assert outcome.error == "ClientConnectorError"


async def test_headers_go_with_every_request() -> None:
    seen: list[str | None] = []

    async def keep(request: web.Request) -> web.Response:
        seen.append(request.headers.get("authorization"))
        return web.json_response({"data": [{"id": "m"}]})

    async with gateway(keep) as plain:
        client = ChatClient(plain._session, plain._url, {"authorization": "Bearer k"})
        await client.first_model()
        await client.chat("m", CHAT, 8)
    assert seen == ["Bearer k", "Bearer k"]


async def test_a_gateway_without_models_is_told_plainly() -> None:
    async def none(_: web.Request) -> web.Response:
        return web.json_response({"data": []})

    async with gateway(none) as client:
        with pytest.raises(ValueError, match="lists no model"):
            await client.first_model()
