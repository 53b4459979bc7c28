"""An endpoint picker with one fault: what shows that the suite sees it.

It stands between a client and a right picker and spoils what passes, by the name of a fault
(`faults`). Without a fault it changes nothing. Knows Envoy's messages and no vector.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.contract.picker.exchange import SERVICE, Target, channel
from tests.contract.picker.faults import Fault
from tests.contract.picker.spoil import EndStream, Memory, Passing

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@asynccontextmanager
async def wrong_server(right: Target, fault: Fault) -> AsyncIterator[Target]:
    """A picker like `right`, but for one fault."""
    async with channel(right) as upstream:
        server = grpc.aio.server(options=_OPTIONS)
        proxy = _Proxy(upstream, fault)
        process = grpc.stream_stream_rpc_method_handler(
            proxy.process,
            request_deserializer=read_message,
            response_serializer=pb.ProcessingResponse.SerializeToString,
        )
        health = grpc.unary_unary_rpc_method_handler(
            proxy.check,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, {"Process": process}),
                grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health}),
            )
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield replace(right, address=f"127.0.0.1:{port}")
        finally:
            await server.stop(None)


def read_message(data: bytes) -> Any:
    """A message, or what is none as it came."""
    try:
        return pb.ProcessingRequest.FromString(data)
    except DecodeError:
        return data


class _Proxy:
    def __init__(self, upstream: Any, fault: Fault) -> None:
        self._upstream = upstream
        self._health = health_pb2_grpc.HealthStub(upstream)
        self._fault = fault
        self._memory = Memory()

    async def check(self, request: Any, context: Any) -> Any:
        if self._fault.name == "never-ready" and request.service != "liveness":
            return health_pb2.HealthCheckResponse(
                status=health_pb2.HealthCheckResponse.ServingStatus.NOT_SERVING
            )
        try:
            return await self._health.Check(request)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")

    async def process(self, _messages: Any, context: Any) -> None:
        passing = Passing(self._memory)
        self._memory.open_streams += 1
        call = self._upstream.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )()
        forth = asyncio.create_task(self._forth(passing, call, context))
        try:
            await self._back(passing, call, context)
        except asyncio.CancelledError:
            if not passing.is_broken:
                self._memory.cancelled += 1
                raise
            if self._fault.name != "early-ok-end":
                await context.abort(grpc.StatusCode.INTERNAL, "no message")
        finally:
            self._memory.open_streams -= 1
            forth.cancel()
            call.cancel()

    async def _forth(self, passing: Passing, call: Any, context: Any) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while (message := await context.read()) is not grpc.aio.EOF:
                if isinstance(message, bytes):
                    passing.is_broken = True
                    call.cancel()
                    return
                passing.saw(message)
                for changed in self._fault.requests(passing, message):
                    await call.write(changed)
                for extra in passing.taken():
                    await context.write(extra)
            await call.done_writing()

    async def _back(self, passing: Passing, call: Any, context: Any) -> None:
        try:
            while (reply := await call.read()) is not grpc.aio.EOF:
                for changed in self._fault.replies(passing, reply):
                    await context.write(changed)
            code, details = await call.code(), await call.details()
        except EndStream:
            return
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details()
        if code is not grpc.StatusCode.OK and self._fault.name != "early-ok-end":
            await context.abort(code, details or "")
