"""The smallest endpoint picker that keeps the profile `epp`, of another make than this server.

Written from the protocol alone, with the liberties that it leaves and the reference picker takes:
it writes the JSON of a body anew, answers errors in plain text, picks for every request, a GET
too, and knows nothing of AIBrix. It shows that the suite asks no more than the rules.
"""

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.contract.picker.exchange import SERVICE, Target

_PODS: Final = ("127.0.0.1:9001", "127.0.0.1:9002", "[::1]:9003")
_KEY: Final = "x-gateway-destination-endpoint"
_PIECE_BYTES: Final = 60_000
_NAMES: Final = ("", "liveness", "readiness", SERVICE)


@asynccontextmanager
async def tiny_picker(credentials: Any = None) -> AsyncIterator[Target]:
    """The picker, with three endpoints that nobody listens on; over TLS with credentials."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    process = grpc.stream_stream_rpc_method_handler(
        _process,
        request_deserializer=pb.ProcessingRequest.FromString,
        response_serializer=pb.ProcessingResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Process": process}),)
    )
    servicer = health.aio.HealthServicer()
    for name in _NAMES:
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield Target(f"127.0.0.1:{port}", "any", _PODS)
    finally:
        await server.stop(None)


async def _process(messages: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    async for reply in _Stream(context).process(messages):
        yield reply


class _Stream:
    def __init__(self, context: Any) -> None:
        self._context = context
        self._duplex = False
        self._body = b""
        self._allowed = list(_PODS)
        self._is_done = False
        self._awaits_body = False

    async def process(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for message in messages:
            for reply in self._replies(message, message.WhichOneof("request")):
                yield reply
                if reply.WhichOneof("response") == "immediate_response":
                    return
        if self._duplex and not self._is_done:
            await self._context.abort(grpc.StatusCode.CANCELLED, "ended before the body did")

    def _replies(self, message: Any, kind: str | None) -> list[Any]:
        if kind == "request_headers":
            return self._on_headers(message)
        if kind == "request_body":
            return self._on_body(message.request_body)
        if kind == "request_trailers":
            return self._on_trailers()
        reply = pb.ProcessingResponse()
        if kind == "response_body" and self._duplex:
            return _pieces("response_body", message.response_body.body, message.response_body)
        if kind is not None:
            getattr(reply, kind).SetInParent()
            return [reply]
        return []

    def _on_headers(self, message: Any) -> list[Any]:
        mode = message.protocol_config.request_body_mode
        self._duplex = mode == pb.ProcessingMode.FULL_DUPLEX_STREAMED
        hint = MessageToDict(message.metadata_context).get("filterMetadata", {})
        subset = hint.get("envoy.lb.subset_hint", {}).get(f"{_KEY}-subset")
        if subset is not None:
            self._allowed = [pod for pod in _PODS if pod in subset]
        if message.request_headers.end_of_stream:
            self._is_done = True
            return [self._pick("request_headers")]
        if self._duplex:
            return []
        reply = pb.ProcessingResponse()
        reply.request_headers.response.header_mutation.remove_headers.append(_KEY)
        return [reply]

    def _on_body(self, body: Any) -> list[Any]:
        self._body += body.body
        if self._is_done:
            return []
        if not self._duplex:
            self._is_done = True
            return [self._checked("request_body")]
        return self._go_on(True) if body.end_of_stream else []

    def _on_trailers(self) -> list[Any]:
        reply = pb.ProcessingResponse()
        reply.request_trailers.SetInParent()
        return [*(self._go_on(False) if self._duplex else []), reply]

    def _go_on(self, ends: bool) -> list[Any]:
        self._is_done = True
        first = self._checked("request_headers")
        if first.WhichOneof("response") == "immediate_response":
            return [first]
        body = json.dumps(json.loads(self._body), separators=(",", ":")).encode()
        return [first, *_pieces("request_body", body, pb.HttpBody(end_of_stream=ends))]

    def _checked(self, kind: str) -> Any:
        try:
            json.loads(self._body)
        except ValueError:
            return _refusal(400, b"the body is no JSON")
        return self._pick(kind)

    def _pick(self, kind: str) -> Any:
        if not self._allowed:
            return _refusal(503, b"no endpoint is eligible")
        order = ",".join(random.sample(self._allowed, len(self._allowed)))
        reply = pb.ProcessingResponse()
        mutation = getattr(reply, kind).response.header_mutation
        mutation.set_headers.add().header.MergeFrom(
            pb.HeaderValue(key=_KEY, raw_value=order.encode())
        )
        reply.dynamic_metadata.update({"envoy.lb": {_KEY: order}})
        return reply


def _pieces(kind: str, body: bytes, end: Any) -> list[Any]:
    replies = []
    for at in range(0, len(body) or 1, _PIECE_BYTES):
        reply = pb.ProcessingResponse()
        piece = getattr(reply, kind).response.body_mutation.streamed_response
        piece.body = body[at : at + _PIECE_BYTES]
        piece.end_of_stream = end.end_of_stream and at + _PIECE_BYTES >= len(body)
        replies.append(reply)
    return replies


def _refusal(status: int, body: bytes) -> Any:
    reply = pb.ProcessingResponse()
    reply.immediate_response.status.code = status  # type: ignore[assignment]
    reply.immediate_response.body = body
    return reply
