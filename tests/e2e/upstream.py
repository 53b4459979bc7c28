"""A pod that is no engine: it keeps what it was sent, byte for byte, and answers as it is told.

What a fake engine hides (the exact bytes of a body, trailers, every header, whether anybody
connected at all) a test sees here. It speaks HTTP/1.1 by itself, over plain sockets.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    """Lower-case names; values of a repeated one are joined by a comma."""
    body: bytes
    trailers: dict[str, str] = field(default_factory=dict)


@dataclass
class Upstream:
    """Serves `model` under the name `name`. `await start()`, then `address` answers.

    `received` holds what came through Envoy, `connections` counts everybody who connected. What
    the processor asks a pod by itself (its models) and health checks are answered and not kept.
    """

    name: str
    model: str = "mirror"
    address: str = ""
    connections: int = 0
    received: list[Received] = field(default_factory=list)
    _script: list[bytes] | None = None
    _steps: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def start(self) -> "Upstream":
        """Listen on a free port; after `close` on the same one again."""
        port = int(self.address.rpartition(":")[2] or 0)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def close(self) -> None:
        """Refuse and cut every connection."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    async def __aenter__(self) -> "Upstream":
        return await self.start()

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def endpoint(self, **changes: Any) -> dict[str, Any]:
        """Its entry in the endpoints file."""
        entry = {"name": self.name, "model": self.model, "address": self.address}
        return {**entry, "labels": {"pod": self.name}, **changes}

    def answer_in_steps(self, parts: Sequence[bytes]) -> None:
        """Answer each request with these chunks, one for each `step`, from now on."""
        self._script = list(parts)
        self._steps = asyncio.Semaphore(0)

    def step(self, steps: int = 1) -> None:
        """Let the next part of an answer go: the head, then each chunk, then the end."""
        for _ in range(steps):
            self._steps.release()

    def answer_at_once(self) -> None:
        """Answer with this pod's name, as at first; answers in steps run to their end."""
        self._script = None
        self.step(10_000)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                await self._answer(await read_request(reader), writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # it is over, from that side or from this; asyncio's server must not see why
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        if "x-request-id" not in request.headers:
            status, page = "404 Not Found", {}
            if request.path == "/v1/models":
                status, page = "200 OK", {"object": "list", "data": [{"id": self.model}]}
            elif request.path == "/health":
                status = "200 OK"
            await _write_whole(writer, status, page)
            return
        self.received.append(request)
        if self._script is None:
            await _write_whole(writer, "200 OK", {"pod": self.name}, f"x-fake-pod: {self.name}\r\n")
            return
        script, steps = self._script, self._steps
        await steps.acquire()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"x-fake-pod: %s\r\ntransfer-encoding: chunked\r\n\r\n" % self.name.encode()
        )
        await writer.drain()
        for part in script:
            await steps.acquire()
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await writer.drain()
        await steps.acquire()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def received(pods: Sequence[Upstream]) -> list[Received]:
    """What all of them were sent, pod by pod."""
    return [one for pod in pods for one in pod.received]


async def read_request(reader: asyncio.StreamReader) -> Received:
    """One request. Raises IncompleteReadError where the other side has closed."""
    line = (await reader.readuntil(b"\r\n")).decode("latin-1").split(" ")
    headers = await _read_fields(reader)
    body, trailers = b"", {}
    if "chunked" in headers.get("transfer-encoding", ""):
        body, trailers = await _read_chunks(reader)
    elif length := int(headers.get("content-length", 0)):
        body = await reader.readexactly(length)
    return Received(line[0], line[1], headers, body, trailers)


async def _read_fields(reader: asyncio.StreamReader) -> dict[str, str]:
    """Headers or trailers, up to the empty line."""
    fields: dict[str, str] = {}
    while line := (await reader.readuntil(b"\r\n")).strip():
        name, _, value = line.decode("latin-1").partition(":")
        name, value = name.strip().lower(), value.strip()
        fields[name] = f"{fields[name]},{value}" if name in fields else value
    return fields


async def _read_chunks(reader: asyncio.StreamReader) -> tuple[bytes, dict[str, str]]:
    pieces = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    return b"".join(pieces), await _read_fields(reader)


async def _write_whole(
    writer: asyncio.StreamWriter, status: str, page: Any, extra: str = ""
) -> None:
    body = json.dumps(page).encode()
    fields = f"content-type: application/json\r\n{extra}content-length: {len(body)}\r\n"
    writer.write(f"HTTP/1.1 {status}\r\n{fields}\r\n".encode() + body)
    await writer.drain()


async def send_raw(url: str, *pieces: bytes) -> tuple[int, bytes]:
    """Send these bytes to `http://host:port` as they are; status and all that follows.

    For what a client library would not send. The request must say `connection: close`.
    """
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(10):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            answer = await reader.read()
    finally:
        writer.close()
    return int(answer.split(b" ", 2)[1]), answer
