"""A processor and engines that do what a test tells them, for an Envoy under test."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
from aiohttp import web

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.stack.envoy_config import Config
from aibrix_extproc.stack.processes import Processes
from aibrix_extproc.stack.start import Envoy, start_envoy
from tests.envoy_binary import envoy_path

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"


@dataclass
class StubEngine:
    """Answers every path with its name, and keeps what it was sent.

    `gate` holds answers back until it is set; `resets` drops the connection instead of answering.
    """

    name: str
    address: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)
    bodies: list[int] = field(default_factory=list)
    health_checks: int = 0
    status: int = 200
    resets: bool = False
    gate: asyncio.Event | None = None
    runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=32 << 20)
        app.router.add_route("*", "/{path:.*}", self.handle)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0, backlog=2048).start()
        self.address = f"127.0.0.1:{self.runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None

    async def handle(self, request: web.Request) -> web.Response:
        if request.path == "/health" and "Envoy/HC" in request.headers.get("user-agent", ""):
            self.health_checks += 1
            return web.Response(text="ok")
        self.requests.append({k.lower(): v for k, v in request.headers.items()})
        self.bodies.append(len(await request.read()))
        if self.resets and request.transport is not None:
            request.transport.abort()
        if self.gate is not None:
            await self.gate.wait()
        return web.Response(text=self.name, status=self.status)


@dataclass
class StubProcessor:
    """Sets `headers` and `metadata` on every request with a body; keeps what it was sent.

    `stalled`: it says nothing to bodies. `served_by`: who answered, by Envoy's word.
    """

    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    address: str = ""
    seen: list[dict[str, str]] = field(default_factory=list)
    modes: list[Any] = field(default_factory=list)
    served_by: list[str] = field(default_factory=list)
    stalled: bool = False
    ready: bool = True
    server: grpc.aio.Server | None = None

    async def start(self, address: str = "127.0.0.1:0") -> None:
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", 18 << 20)])
        process = grpc.stream_stream_rpc_method_handler(
            self._process,
            request_deserializer=pb.ProcessingRequest.FromString,
            response_serializer=pb.ProcessingResponse.SerializeToString,
        )
        health = grpc.unary_unary_rpc_method_handler(self._health)
        self.server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, {"Process": process}),
                grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health}),
            )
        )
        port = self.server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(None)
            self.server = None

    async def _process(
        self, requests: AsyncIterator[pb.ProcessingRequest], _: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ProcessingResponse]:
        async for message in requests:
            reply = pb.ProcessingResponse()
            kind = message.WhichOneof("request")
            if kind == "request_headers":
                self.seen.append(
                    {h.key: h.raw_value.decode() for h in message.request_headers.headers.headers}
                )
                self.modes.append(message.protocol_config)
                reply.request_headers.SetInParent()
            elif kind == "request_body" and self.stalled:
                await asyncio.Event().wait()
            elif kind == "request_body":
                common = reply.request_body.response
                common.clear_route_cache = bool(self.headers)
                for key, value in self.headers.items():
                    option = common.header_mutation.set_headers.add()
                    option.header.key, option.header.raw_value = key, value.encode()
                if self.metadata:
                    reply.dynamic_metadata.update({"envoy.lb": self.metadata})
            else:
                for values in message.attributes.values():
                    self.served_by.append(values["upstream.address"])
                reply.response_headers.SetInParent()
            yield reply

    async def _health(self, _: bytes, __: grpc.aio.ServicerContext) -> bytes:
        # HealthCheckResponse{status: SERVING or NOT_SERVING}
        return b"\x08\x01" if self.ready else b"\x08\x02"


@dataclass
class Rig:
    """Envoy between a client and stubs."""

    envoy: Envoy
    processor: StubProcessor
    engines: list[StubEngine]
    replica: StubProcessor
    """A second processor, which Envoy uses only where the configuration names it."""
    session: aiohttp.ClientSession

    async def post(self, path: str = "/v1/completions", **options: Any) -> tuple[int, str]:
        if "data" not in options:
            options["json"] = {"model": "m", "prompt": "p"}
        async with self.session.post(self.envoy.url + path, **options) as reply:
            return reply.status, await reply.text()

    @property
    def received(self) -> list[dict[str, str]]:
        """The headers of every request that reached an engine."""
        return [headers for engine in self.engines for headers in engine.requests]


@asynccontextmanager
async def rig(
    make_config: Callable[[list[StubProcessor], list[StubEngine]], Config], engines: int = 3
) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        processes = stack.enter_context(Processes())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        started = [await _start_engine(stack, f"engine-{n}") for n in range(engines)]
        processors = [StubProcessor(), StubProcessor()]
        for processor in processors:
            await processor.start()
            stack.push_async_callback(processor.stop)
        config = make_config(processors, started)
        envoy = await start_envoy(processes, session, envoy_path(), config)
        yield Rig(envoy, processors[0], started, processors[1], session)


async def _start_engine(stack: AsyncExitStack, name: str) -> StubEngine:
    engine = StubEngine(name)
    await engine.start()
    stack.push_async_callback(engine.stop)
    return engine
