"""What tests of trouble look at: an answer while it streams, a processor's view, an engine's post.

Everything here asks the running parts; nothing is assumed of their insides but what a fake
engine in this process shows by itself.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aibrix_extproc.fakes.config import EngineConfig, TimeModel
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.fakes.server import EngineServer
from tests.e2e.stack import Reply, Stack
from tests.support import eventually_async

PICKED = "target-pod"
"""A debug header of the answer: there where the processor picked the pod."""
MATCHED = "x-aibrix-matched-tokens"
PICKS = "aibrix_extproc_requests_total"

PACED = [
    EngineConfig(name=f"engine-{number}", time=TimeModel(decode_ms_per_token=5))
    for number in range(2)
]
"""Engines whose answers take long enough to be looked at."""


def text(name: object, words: int = 300) -> str:
    """A prompt that shares no block with one of another name; a token or more a word."""
    return " ".join(f"{name}w{number}" for number in range(words))


# -- an answer while it streams ---------------------------------------------------------------


@dataclass
class LiveAnswer:
    """A streamed answer of which the first piece has come."""

    response: aiohttp.ClientResponse
    received: bytes

    @property
    def pod(self) -> str:
        return self.response.headers["x-fake-pod"]

    async def rest(self) -> Reply:
        """The whole answer. Raises aiohttp.ClientError where it is cut off."""
        body = self.received + await self.response.read()
        names = {name.lower(): value for name, value in self.response.headers.items()}
        return Reply(self.response.status, names, body)


async def begin_answer(stack: Stack, prompt: str, tokens: int = 40) -> LiveAnswer:
    """Ask for a streamed completion and return with its first piece."""
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    response = await stack.session.post(f"{stack.url}/v1/completions", json=body)
    assert response.status == 200, await response.text()
    return LiveAnswer(response, await response.content.readline())


def assert_whole(reply: Reply, tokens: int = 40) -> None:
    """Every token and the end of the stream arrived."""
    events = reply.events()
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == tokens


@contextmanager
def held(stack: Stack) -> Iterator[None]:
    """No engine takes a step inside: answers under way stand still, new ones do not begin."""
    ranks = [rank for engine in stack.engines for rank in engine.ranks]
    for rank in ranks:
        rank.pause()
    try:
        yield
    finally:
        for rank in ranks:
            rank.resume()


async def ask_together(stack: Stack, requests: Sequence[Awaitable[Reply]]) -> list[Reply]:
    """Have all of them decided before an engine takes a step for any, then answered."""
    picked = await counted(stack, PICKS, outcome="picked")
    with held(stack):
        tasks = [asyncio.ensure_future(request) for request in requests]

        async def decided() -> bool:
            return await counted(stack, PICKS, outcome="picked") == picked + len(tasks)

        await eventually_async(decided)
    return await asyncio.gather(*tasks)


# -- what a processor sees --------------------------------------------------------------------


async def explain(stack: Stack, prompt: str, server: int = 0, filter: str = "") -> dict[str, Any]:
    """`/debug/explain` of a completion with this prompt, among the pods with these labels."""
    url = f"{stack.servers[server].debug_url}/debug/explain?path=/v1/completions"
    body = {"model": "tiny", "prompt": prompt}
    async with stack.session.post(url, json=body, headers={"external-filter": filter}) as reply:
        page: dict[str, Any] = await reply.json()
    return page


async def depths(stack: Stack, prompt: str) -> dict[str, int]:
    """Candidate → leading blocks of the prompt that its events say it holds."""
    page = await explain(stack, prompt)
    return {_pod_name(one["pod"]): one["depth"] for one in page.get("candidates", ())}


async def sources(stack: Stack, server: int = 0) -> dict[str, dict[str, Any]]:
    """`/debug/sources` by the pod's name; pods here have one rank."""
    return {_pod_name(one["pod"]): one for one in await stack.debug("/debug/sources", server)}


async def caught_up(stack: Stack, server: int = 0) -> None:
    """Wait until the processor has applied every batch that the listed engines have sent."""

    async def same() -> bool:
        seen = await sources(stack, server)
        listed = [e for e in stack.engines if e.config.name in seen and e.ranks]
        return all(_has_all(seen[engine.config.name], engine) for engine in listed)

    await eventually_async(same)


def _has_all(source: dict[str, Any], engine: FakeEngine) -> bool:
    publisher = engine.ranks[0].publisher
    assert publisher is not None
    if not publisher.sent_all:
        return False
    sent = publisher.sequence - 1
    return source["state"] in {"EXACT", "PARTIAL"} and source["sequence"] == (
        sent if sent >= 0 else None
    )


def _pod_name(key: str) -> str:
    return key.removeprefix("default/")


async def counted(stack: Stack, name: str, server: int = 0, **labels: str) -> float:
    """One sample of a processor's `/metrics`, by its labels; 0 where there is none."""
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    async with stack.session.get(f"{stack.servers[server].admin_url}/metrics") as reply:
        for line in (await reply.text()).splitlines():
            series, _, value = line.rpartition(" ")
            found, _, rest = series.partition("{")
            if found == name and wanted <= set(rest.rstrip("}").split(",")):
                return float(value)
    return 0.0


async def serving(address: str, service: str = "readiness") -> bool:
    """What gRPC health says; False where nobody answers."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            reply = await stub.Check(
                health_pb2.HealthCheckRequest(service=service), timeout=5, wait_for_ready=False
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def not_serving(address: str) -> bool:
    return not await serving(address)


def watch_health_closely(config: dict[str, Any]) -> None:
    """An edit of Envoy's configuration: it asks every replica ten times a second."""
    clusters = config["static_resources"]["clusters"]
    check = next(c for c in clusters if c["name"] == "ext_proc")["health_checks"][0]
    check |= {"interval": "0.1s", "no_traffic_interval": "0.1s"}


# -- an engine's post -------------------------------------------------------------------------


@dataclass
class Post:
    """What reaches the engines started inside `opened_post`, and who is answered otherwise."""

    bodies: list[tuple[str, int]] = field(default_factory=list)
    """Path and size in bytes of each request body that came whole."""
    cut_off: int = 0
    """Bodies that ended before they were whole."""
    waiting: int = 0
    """Requests that hang now."""
    fails: Callable[[str], bool] = lambda path: False
    """Paths that are answered with 500."""
    hangs: Callable[[str], bool] = lambda path: False
    """Paths that are not answered until this says no; look at it by `release`."""
    _turn: asyncio.Event = field(default_factory=asyncio.Event)

    def answer_again(self) -> None:
        """Nothing fails or hangs any more."""
        self.fails = self.hangs = lambda path: False
        self._turn.set()
        self._turn = asyncio.Event()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.method == "POST":
            try:
                self.bodies.append((request.path, len(await request.read())))
            except BaseException:
                self.cut_off += 1
                raise
        if self.hangs(request.path):
            self.waiting += 1
            try:
                await self._turn.wait()
            finally:
                self.waiting -= 1
        if self.fails(request.path):
            return web.Response(status=500)
        response: web.StreamResponse = await handler(request)
        return response

    def sizes(self, path: str) -> list[int]:
        return [size for at, size in self.bodies if at == path]


@contextmanager
def opened_post() -> Iterator[Post]:
    """Look into what engines are sent: those that start inside the block."""
    post = Post()
    usual = EngineServer.application

    def application(server: EngineServer) -> web.Application:
        app = usual(server)
        app.middlewares.insert(0, post.middleware)
        return app

    EngineServer.application = application  # type: ignore[method-assign]
    try:
        yield post
    finally:
        EngineServer.application = usual  # type: ignore[method-assign]


# -- a client that is slow --------------------------------------------------------------------


@dataclass
class SlowUpload:
    """A POST of which only a part is sent so far."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    unsent: bytes

    @classmethod
    async def begin(cls, stack: Stack, body: bytes, sent_bytes: int) -> "SlowUpload":
        """Send the head and the first bytes of a JSON body."""
        host, _, port = stack.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = (
            "POST /v1/completions HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body[:sent_bytes])
        await writer.drain()
        return cls(reader, writer, body[sent_bytes:])

    async def send_rest(self) -> None:
        self.writer.write(self.unsent)
        await self.writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """Status and everything after the status line."""
        async with asyncio.timeout(20):
            line = await self.reader.readline()
            rest = await self.reader.read()
        self.writer.close()
        return int(line.split()[1]), rest
