"""The HTTP side of a fake engine: vLLM's routes, streams and refusals.

Owns the routes and what is remembered of requests for `/debug/requests` (never their text).
Knows bodies and replies by their own modules, and the ranks as things that answer.
"""

import json
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from aibrix_extproc.fakes import replies
from aibrix_extproc.fakes.blocks import CachedSequence
from aibrix_extproc.fakes.bodies import Ask, BodyReader, Refused
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.events import EVENT_SOURCES_SINCE
from aibrix_extproc.fakes.exposition import CONTENT_TYPE, exposition
from aibrix_extproc.fakes.publisher import HIGH_WATER_MARK
from aibrix_extproc.fakes.rank import Generation, RankEngine
from aibrix_extproc.fakes.replies import Answer, Json, ReplyHead
from aibrix_extproc.fakes.scheduler import Request
from aibrix_extproc.fakes.tokenizer import END_OF_TURN, Tokenizer

RANK_HEADER: Final = "X-data-parallel-rank"
POD_HEADER: Final = "x-fake-pod"
_SHOWN_HEADERS: Final = ("target-pod", "x-data-parallel-rank", "x-request-id", "routing-strategy")
_MAX_BODY_BYTES: Final = 256 * 1024 * 1024

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class _Seen:
    """One request as `/debug/requests` shows it."""

    path: str
    headers: Mapping[str, str]
    ask: Ask
    rank: int
    requests: Sequence[Request]

    def shown(self) -> Json:
        cached = [request.cached_tokens for request in self.requests]
        return {
            "path": self.path,
            "headers": self.headers,
            "model": self.ask.model,
            "rank": self.rank,
            "prompt_tokens": self.ask.prompt_tokens,
            "cached_tokens": sum(known for known in cached if known is not None),
            "finish": [request.finish for request in self.requests],
        }


class EngineServer:
    """The web application over some ranks; `application()` is what aiohttp runs."""

    def __init__(
        self, config: EngineConfig, tokenizer: Tokenizer, ranks: Sequence[RankEngine]
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._ranks = ranks
        self._reader = BodyReader(config, tokenizer)
        self._seen: deque[_Seen] = deque(maxlen=config.debug_requests)
        self._started = int(time.time())
        self._asleep = False

    def application(self) -> web.Application:
        """All routes of this engine's version and flags."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._refusals])
        app.on_response_prepare.append(self._sign)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/tokenize", self._tokenize)
        if self._config.render:
            app.router.add_post("/v1/completions/render", self._render_completion)
            app.router.add_post("/v1/chat/completions/render", self._render_chat)
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        if self._config.version >= EVENT_SOURCES_SINCE:
            app.router.add_get("/kv_event_sources", self._event_sources)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/load", self._load)
        app.router.add_get("/debug/requests", self._debug_requests)
        app.router.add_post("/reset_prefix_cache", self._reset)
        app.router.add_post("/sleep", self._sleep)
        app.router.add_post("/wake_up", self._wake_up)
        app.router.add_get("/is_sleeping", self._is_sleeping)
        app.router.add_post("/pause", self._pause)
        app.router.add_post("/resume", self._resume)
        return app

    # -- answers ------------------------------------------------------------------------------
    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, self._reader.completion(await _json(request)))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, self._reader.chat(await _json(request)))

    async def _answer(self, request: web.Request, ask: Ask) -> web.StreamResponse:
        rank = self._rank(request)
        under_way = self._engine_requests(ask)
        shown = {name: request.headers[name] for name in _SHOWN_HEADERS if name in request.headers}
        self._seen.append(_Seen(request.path, shown, ask, rank.rank, under_way))
        head = _head(request, ask)
        with rank.generate(under_way) as generation:
            if ask.stream:
                return await self._stream(request, head, generation, under_way)
            answers = [Answer() for _ in under_way]
            async for part in generation:
                answer = answers[part.index]
                answer.token_ids += part.token_ids
                answer.finish = part.finish
        for answer in answers:
            answer.text = self._tokenizer.decode(answer.token_ids)
        return web.json_response(replies.whole(head, answers, replies.usage(ask, under_way)))

    async def _stream(
        self,
        request: web.Request,
        head: ReplyHead,
        generation: Generation,
        under_way: Sequence[Request],
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        try:
            if self._config.head_at_once:
                await response.prepare(request)
            async for data in self._chunks(head, generation):
                if not response.prepared:
                    await response.prepare(request)
                await response.write(_event(data))
            if head.ask.include_usage:
                counts = replies.usage(head.ask, under_way)
                await response.write(_event(replies.usage_chunk(head, counts)))
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
        except ConnectionResetError:
            pass  # the client is gone; leaving the generation aborts what is unfinished
        return response

    async def _chunks(self, head: ReplyHead, generation: Generation) -> AsyncIterator[Json]:
        opened: set[int] = set()
        async for part in generation:
            if head.ask.chat and part.index not in opened:
                opened.add(part.index)
                yield replies.opening_chunk(head, part.index)
            text = self._tokenizer.decode(part.token_ids)
            yield replies.chunk(head, part.index, Answer(text, part.token_ids, part.finish))

    def _engine_requests(self, ask: Ask) -> list[Request]:
        stop_after = 0 if ask.ignore_eos else self._config.answer_tokens
        return [
            Request(
                CachedSequence(
                    list(prompt),
                    adapter=ask.adapter,
                    cache_salt=ask.cache_salt,
                    session_id=ask.session_id,
                    report_hits=ask.report_hits,
                ),
                answer=self._tokenizer.answer(prompt),
                max_tokens=limit,
                stop_after=stop_after,
                end_token=END_OF_TURN,
            )
            for prompt, limit in zip(ask.prompts, ask.max_tokens, strict=True)
            for _ in range(ask.choices)
        ]

    def _rank(self, request: web.Request) -> RankEngine:
        wanted = request.headers.get(RANK_HEADER)
        if wanted is None:
            return min(self._ranks, key=lambda rank: rank.load)
        if not wanted.isdigit() or int(wanted) >= len(self._ranks):
            raise Refused(f"data_parallel_rank {wanted} is not one of {len(self._ranks)} ranks")
        return self._ranks[int(wanted)]

    # -- tokens -------------------------------------------------------------------------------
    async def _tokenize(self, request: web.Request) -> web.Response:
        ids = self._reader.tokenize(await _json(request))
        limit = self._config.model_len
        reply = {"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": None}
        return web.json_response(reply)

    async def _render_completion(self, request: web.Request) -> web.Response:
        ask = self._reader.completion(await _json(request))
        return web.json_response(replies.rendered(_head(request, ask)))

    async def _render_chat(self, request: web.Request) -> web.Response:
        ask = self._reader.chat(await _json(request))
        return web.json_response(replies.rendered(_head(request, ask)))

    # -- what the engine says of itself ---------------------------------------------------------
    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": self._config.vllm_version})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response(replies.models(self._config, self._started))

    async def _event_sources(self, request: web.Request) -> web.Response:
        sources: Json = {}
        for rank in self._ranks:
            if (publisher := rank.publisher) is not None:
                replay = publisher.replay_port
                sources[str(rank.rank)] = {
                    "enable_kv_cache_events": True,
                    "publisher": "zmq",
                    "endpoint": f"tcp://*:{publisher.port}",
                    "replay_endpoint": None if replay is None else f"tcp://*:{replay}",
                    "buffer_steps": self._config.buffer_steps,
                    "hwm": HIGH_WATER_MARK,
                    "max_queue_size": HIGH_WATER_MARK,
                    "topic": publisher.topic,
                }
        return web.json_response(sources)

    async def _metrics(self, request: web.Request) -> web.Response:
        text = exposition(self._config, self._ranks)
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _load(self, request: web.Request) -> web.Response:
        return web.json_response({"server_load": sum(rank.load for rank in self._ranks)})

    async def _debug_requests(self, request: web.Request) -> web.Response:
        return web.json_response({"requests": [seen.shown() for seen in self._seen]})

    # -- clears -------------------------------------------------------------------------------
    async def _reset(self, request: web.Request) -> web.Response:
        return web.json_response({"success": self._clear()})

    async def _sleep(self, request: web.Request) -> web.Response:
        self._clear()
        self._asleep = True
        self._hold()
        level = int(request.query.get("level", "1"))
        return web.json_response({"status": "sleeping", "level": level})

    async def _wake_up(self, request: web.Request) -> web.Response:
        self._asleep = False
        self._go_on()
        return web.json_response({"status": "awake", "tags": None})

    async def _is_sleeping(self, request: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": self._asleep})

    async def _pause(self, request: web.Request) -> web.Response:
        self._clear()
        self._hold()
        return web.json_response({"status": "paused"})

    async def _resume(self, request: web.Request) -> web.Response:
        self._go_on()
        return web.json_response({"status": "resumed"})

    def _clear(self) -> bool:
        cleared = [rank.reset() for rank in self._ranks]
        return all(cleared)

    def _hold(self) -> None:
        for rank in self._ranks:
            rank.pause()

    def _go_on(self) -> None:
        for rank in self._ranks:
            rank.resume()

    # -- around every request -------------------------------------------------------------------
    async def _sign(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers[POD_HEADER] = self._config.name

    @web.middleware
    async def _refusals(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as refused:
            return web.json_response(replies.error(refused), status=refused.status)
        except web.HTTPException as stock:
            kind = HTTPStatus(stock.status).phrase
            body = replies.error(Refused(stock.reason, stock.status, kind))
            return web.json_response(body, status=stock.status)


async def _json(request: web.Request) -> Mapping[str, Any]:
    """The body as an object. vLLM takes no other content type than JSON."""
    if request.content_type != "application/json":
        message = "Unsupported Media Type: Only 'application/json' is allowed"
        raise Refused(message, kind="Bad Request")
    try:
        body = json.loads(await request.read())
    except ValueError as error:
        raise Refused(f"JSON decode error: {error}", kind="Bad Request") from None
    if not isinstance(body, dict):
        raise Refused("the body is no JSON object", kind="Bad Request")
    return body


def _head(request: web.Request, ask: Ask) -> ReplyHead:
    request_id = request.headers.get("x-request-id") or uuid.uuid4().hex[:16]
    prefix = "chatcmpl" if ask.chat else "cmpl"
    return ReplyHead(f"{prefix}-{request_id}", int(time.time()), ask)


def _event(data: Json) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"
