"""An ext_proc that does nothing: what the request path is measured against.

    python -m benchmarks.empty_ext_proc ADDRESS [--raw]

The same server as the real one (`service.make_server`, uvloop, gRPC health), the same messages of
Envoy read and answered one by one, and nothing in the answers but CONTINUE. In duplex, where a
body is owed back, it goes back as it came. `--raw` does not even read them: each message is told by
its first byte, and the answers are bytes made beforehand (BUFFERED only); that is the floor of
grpc.aio, not a server that anybody could use.
"""

import asyncio
import sys
from typing import Any, Final

import grpc
import uvloop

from aibrix_extproc.extproc.health import Health
from aibrix_extproc.extproc.service import SERVICE, listen, make_server
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.settings import Settings

_COMMON: Final = pb.CommonResponse()
CONTINUE: Final = {
    "request_headers": pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=_COMMON)),
    "request_body": pb.ProcessingResponse(request_body=pb.BodyResponse(response=_COMMON)),
    "request_trailers": pb.ProcessingResponse(request_trailers=pb.TrailersResponse()),
    "response_headers": pb.ProcessingResponse(
        response_headers=pb.HeadersResponse(response=_COMMON)
    ),
    "response_trailers": pb.ProcessingResponse(response_trailers=pb.TrailersResponse()),
}
_RAW: Final = {
    field.number << 3 | 2: CONTINUE[field.name].SerializeToString()
    for field in pb.ProcessingRequest.DESCRIPTOR.fields
    if field.name in CONTINUE
}
"""By the tag of the field that a message begins with."""
_CHUNK_BYTES: Final = 62_000


async def process(_first: Any, context: Any) -> None:
    """Answer each message with CONTINUE."""
    duplex = False
    while True:
        message = await context.read()
        if message is grpc.aio.EOF:
            return
        if message.HasField("protocol_config"):
            mode = message.protocol_config.request_body_mode
            duplex = mode == pb.ProcessingMode.FULL_DUPLEX_STREAMED
        kind = message.WhichOneof("request")
        if kind == "request_body" and duplex:
            body, ends = message.request_body.body, message.request_body.end_of_stream
            for start in range(0, max(1, len(body)), _CHUNK_BYTES):
                last = start + _CHUNK_BYTES >= len(body)
                await context.write(_piece(body[start : start + _CHUNK_BYTES], ends and last))
        else:
            await context.write(CONTINUE[kind])


def _piece(chunk: bytes, ends: bool) -> pb.ProcessingResponse:
    streamed = pb.StreamedBodyResponse(body=chunk, end_of_stream=ends)
    mutation = pb.BodyMutation(streamed_response=streamed)
    common = pb.CommonResponse(body_mutation=mutation)
    return pb.ProcessingResponse(request_body=pb.BodyResponse(response=common))


async def process_raw(_first: Any, context: Any) -> None:
    """The same for bytes that are not looked into."""
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(_RAW[message[0]])


async def serve(address: str, raw: bool) -> None:
    server = make_server(Settings())
    handler = grpc.stream_stream_rpc_method_handler(
        process_raw if raw else process,
        request_deserializer=None if raw else pb.ProcessingRequest.FromString,
        response_serializer=None if raw else pb.ProcessingResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Process": handler}),)
    )
    health = Health()
    await health.start(server)
    listen(server, address)
    await server.start()
    await health.set_serving(True)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], "--raw" in sys.argv))
