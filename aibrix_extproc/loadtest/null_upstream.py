"""An upstream that answers every request at once, with a stream of as many chunks as it is told.

Run as `python -m aibrix_extproc.loadtest.null_upstream CHUNKS`; it prints its address as one line
of JSON and serves until it is ended. Owns just enough HTTP for the load test's own client: what it
takes is what the measured client can be charged with. Knows no engine.
"""

import asyncio
import json
import sys
from typing import Final, cast

import uvloop

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_LAST: Final = b"0\r\n\r\n"


def events(chunks: int) -> list[bytes]:
    """The parts of an answer, each a chunk of HTTP: a role, `chunks` words, the usage, the end."""
    kind = {"id": "chatcmpl-null", "object": "chat.completion.chunk", "created": 0, "model": "null"}
    deltas = [{"role": "assistant", "content": ""}, *({"content": " word"} for _ in range(chunks))]
    pages: list[dict[str, object]] = [
        {**kind, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    counts = {"prompt_tokens": 1, "completion_tokens": chunks, "total_tokens": chunks + 1}
    pages.append({**kind, "choices": [], "usage": counts})
    data = [json.dumps(page).encode() for page in pages] + [b"[DONE]"]
    parts = [b"data: " + one + b"\n\n" for one in data]
    return [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]


class NullUpstream(asyncio.Protocol):
    """One connection: each request is read to its end and answered."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._left = 0
        """Bytes of a body that are still to come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._left:
            self._left -= len(data)
            if self._left > 0:
                return
            self._answer(0)
            return
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        self._received = b""
        self._left = _content_length(head) - len(body)
        if self._left <= 0:
            self._answer(0)

    def _answer(self, place: int) -> None:
        """One part at a time, as an engine's would come, and not all in one packet."""
        transport, loop = self._transport, asyncio.get_running_loop()
        if transport is None or transport.is_closing():
            return
        if place == 0:
            self._left = 0
            transport.write(_HEAD)
        if place < len(self._parts):
            transport.write(self._parts[place])
            loop.call_soon(self._answer, place + 1)
        else:
            transport.write(_LAST)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


async def _serve(chunks: int) -> None:
    parts = events(chunks)
    server = await asyncio.get_running_loop().create_server(
        lambda: NullUpstream(parts), "127.0.0.1", 0
    )
    host, port = server.sockets[0].getsockname()[:2]
    print(json.dumps({"address": f"{host}:{port}"}), flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until the process is ended."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
