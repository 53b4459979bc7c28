"""Servers that are wrong in everything: each vector must fail against one of them at least.

So no vector is empty. Knows no vector and no rule.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.contract.picker.exchange import SERVICE, Target
from tests.contract.picker.wrong_server import read_message

Replies = Callable[[Any], list[Any]]


def _mute(_message: Any) -> list[Any]:
    return []


def _refuses(_message: Any) -> list[Any]:
    """In plain text, with a header that only Envoy may set, and an endpoint for the client."""
    reply = pb.ProcessingResponse()
    reply.immediate_response.status.code = 418  # type: ignore[assignment]
    for name in ("x-envoy-upstream-service-time", "target-pod"):
        reply.immediate_response.headers.set_headers.add().header.MergeFrom(
            pb.HeaderValue(key=name, value="1")
        )
    return [reply]


def _agrees(message: Any) -> list[Any]:
    """To each message its reply, the body as it came, and nothing decided or removed."""
    kind = message.WhichOneof("request")
    if kind is None:
        return []
    reply = pb.ProcessingResponse()
    if kind in ("request_trailers", "response_trailers"):
        getattr(reply, kind).SetInParent()
    else:
        common = getattr(reply, kind).response
        common.clear_route_cache = True
        for name in ("target-pod", "x-aibrix-matched-tokens"):
            common.header_mutation.set_headers.add().header.MergeFrom(
                pb.HeaderValue(key=name, raw_value=b"1")
            )
        if kind in ("request_body", "response_body"):
            piece = common.body_mutation.streamed_response
            piece.body = getattr(message, kind).body[:-1]
            piece.end_of_stream = getattr(message, kind).end_of_stream
    return [reply]


CRUDE: Final[dict[str, Replies]] = {"mute": _mute, "refuses": _refuses, "agrees": _agrees}


@asynccontextmanager
async def crude_server(replies: Replies) -> AsyncIterator[Target]:
    """One of `CRUDE`, for any model and three pods. An end of Envoy's side, and
    bytes that are no message, are answered with OK."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])

    async def process(messages: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
        async for message in messages:
            if isinstance(message, bytes):
                return
            for reply in replies(message):
                yield reply

    handler = grpc.stream_stream_rpc_method_handler(
        process,
        request_deserializer=read_message,
        response_serializer=pb.ProcessingResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Process": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        pods = ("127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003")
        yield Target(f"127.0.0.1:{port}", "any", pods, timeout_s=0.5)
    finally:
        await server.stop(None)
