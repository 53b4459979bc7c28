"""Engines that cost little: one process, many ports, a fixed answer, and a tokenizer.

    python -m benchmarks.request_upstream PORTS

Prints its addresses as JSON. Speaks as much HTTP/1.1 as Envoy, the probe and the tokenizer's
client need.
"""

import asyncio
import json
import sys
from typing import Final

import msgspec
import uvloop

from benchmarks.request_prompts import MODEL, tokens_of

_encode: Final = msgspec.json.Encoder().encode


def _reply(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


ANSWER: Final = _reply(b'{"id":"x","choices":[{"message":{"role":"assistant","content":"hi"}}]}')
MODELS: Final = _reply(_encode({"object": "list", "data": [{"id": MODEL}]}))
NOTHING: Final = _reply(b"{}", b"404 Not Found")
HEALTHY: Final = _reply(b"{}")


class Message(msgspec.Struct):
    content: str


class ToTokenize(msgspec.Struct):
    messages: list[Message]


_decode: Final = msgspec.json.Decoder(ToTokenize).decode


def answer(path: bytes, body: bytes) -> bytes:
    if path == b"/tokenize":
        ids = tokens_of(_decode(body).messages[0].content.encode())
        return _reply(_encode({"count": len(ids), "max_model_len": 1 << 20, "tokens": list(ids)}))
    if path == b"/health":
        return HEALTHY
    if path == b"/v1/models":
        return MODELS
    return ANSWER if body else NOTHING


class Server(asyncio.Protocol):
    """One connection; requests come one after another."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._held: list[bytes] = []
        self._missing = 0
        self._path = b""

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._held.append(data)
            self._missing -= len(data)
        else:
            data = b"".join(self._held) + data
            self._held.clear()
            head, found, rest = data.partition(b"\r\n\r\n")
            if not found:
                self._held.append(data)
                return
            self._path = head.split(b" ", 2)[1]
            length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r")[0]
            self._missing = int(length or 0) - len(rest)
            self._held.append(rest)
        if self._missing <= 0:
            body = b"".join(self._held)
            self._held.clear()
            self._missing = 0
            self._transport.write(answer(self._path, body))  # type: ignore[attr-defined]


async def serve(ports: int) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Server, "127.0.0.1", 0) for _ in range(ports)]
    addresses = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
    print(json.dumps({"addresses": addresses}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
