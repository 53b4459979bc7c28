"""One stream between a client that plays Envoy and an endpoint picker, and the record of it.

Owns the gRPC call: messages out as bytes, replies in, the end, and how long is waited. Knows the
states that Envoy waits in, and no vector.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
_OPTIONS: Final = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_CLOSE_S: Final = 1.0
"""How long a picker may take to end a stream that Envoy has closed."""


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint picker under test, and what is known of it."""

    address: str
    model: str = ""
    """A model that it serves; empty: not known."""
    pods: tuple[str, ...] = ()
    """`ip:port` of the endpoints that it may pick; empty: not known."""
    timeout_s: float = 10.0
    """How long a reply may take."""
    authority: bytes | None = None
    """PEM of who signed its certificate; None: it is asked in plain text."""

    def knows(self, option: str) -> bool:
        """Whether the user gave what a vector needs."""
        return bool(self.model if option == "--target-model" else self.pods)


def channel(target: Target) -> Any:
    """A connection, over TLS where an authority is named."""
    if target.authority is None:
        return grpc.aio.insecure_channel(target.address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(target.authority)
    return grpc.aio.secure_channel(target.address, credentials, options=_OPTIONS)


@dataclass(slots=True)
class Exchange:
    """What was sent, what came, and how it ended."""

    duplex: bool
    request_head: pb.HttpHeaders | None = None
    metadata: pb.Metadata = field(default_factory=pb.Metadata)
    """What the data plane knows of the request."""
    request_body: bytes = b""
    request_ended: bool = False
    """The picker was told the end of the request: by headers, a chunk or trailers."""
    has_trailers: bool = False
    log: list[tuple[str, Any]] = field(default_factory=list)
    """`sent` and a message, `got` and a message, `note` or `missing` and a text; in order."""
    end: str | None = None
    """Name of the gRPC status that the picker ended the stream with; None: it did not."""
    end_details: str = ""
    missing: str = ""
    """The reply that Envoy still waited for when the time was up."""
    unsent: list[str] = field(default_factory=list)
    """Steps that Envoy would not have done any more: the picker had answered or left."""
    answer: bytes = b""
    """The body of the response that was sent in duplex."""

    @property
    def got(self) -> list[pb.ProcessingResponse]:
        """The replies, in order."""
        return [message for kind, message in self.log if kind == "got"]

    @property
    def immediate(self) -> pb.ImmediateResponse | None:
        """The answer that the picker gave itself, if it did."""
        for reply in self.got:
            if reply.WhichOneof("response") == "immediate_response":
                return reply.immediate_response
        return None

    @property
    def is_over(self) -> bool:
        """Envoy would send nothing more."""
        return self.end is not None or self.immediate is not None or bool(self.missing)


class Wire:
    """Drives one stream. `Process` is called with bytes, so that anything can be sent.

    Replies are read as they come, as Envoy does, whatever is being sent meanwhile.
    """

    def __init__(self, connection: Any, exchange: Exchange, timeout_s: float) -> None:
        self.exchange = exchange
        self._timeout_s = timeout_s
        self._call = connection.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=bytes,
            response_deserializer=pb.ProcessingResponse.FromString,
        )()
        self._closed = False
        self._news = asyncio.Event()
        self._reader = asyncio.create_task(self._read_all())

    async def send(self, message: pb.ProcessingRequest, unknown: bytes = b"") -> None:
        """Send a message; `unknown` are bytes of fields that no reader knows.

        What the data plane knows of the request goes with each message, as Envoy 1.40 does it.
        """
        message.metadata_context.MergeFrom(self.exchange.metadata)
        if not self.exchange.metadata.filter_metadata:
            message.ClearField("metadata_context")
        self.exchange.log.append(("sent", message))
        await self._write(message.SerializeToString() + unknown)

    async def send_bytes(self, data: bytes) -> None:
        """Send what is no message."""
        self.exchange.log.append(("note", f"sent {data!r}, which are no message"))
        await self._write(data)

    async def wait(self, what: str, has_come: Callable[[], bool]) -> None:
        """Until a reply is there that Envoy waits for, or the stream is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                while not has_come() and not self.exchange.is_over:
                    self._news.clear()
                    await self._news.wait()
                return
        self.exchange.missing = what
        self.exchange.log.append(("missing", what))

    async def half_close(self) -> None:
        """Envoy has nothing more to send."""
        if not self._closed:
            self._closed = True
            self.exchange.log.append(("note", "Envoy closed its side of the stream"))
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await self._call.done_writing()

    async def finish(self) -> None:
        """Close, take what still comes, and leave."""
        if self.exchange.end is None:
            await self.half_close()
            await asyncio.wait([self._reader], timeout=_CLOSE_S)
        self.cancel()

    def cancel(self) -> None:
        """The client has left: Envoy resets the stream."""
        self._reader.cancel()
        self._call.cancel()

    async def _write(self, data: bytes) -> None:
        # A stream that has ended takes nothing more: its end is read.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.write(data)

    async def _read_all(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            while (reply := await self._call.read()) is not grpc.aio.EOF:
                self.exchange.log.append(("got", reply))
                self._news.set()
        self.exchange.end = (await self._call.code()).name
        self.exchange.end_details = await self._call.details() or ""
        self._news.set()
