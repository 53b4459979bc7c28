"""A small TCP proxy that a test stands between a client and a server, to break what passes.

One thread per proxy. Faults are attributes and methods, and may be used from any thread.
"""

import random
import selectors
import socket
import threading
import time
from collections import deque
from contextlib import suppress

_CHUNK = 65536
_TURN_S = 0.005
SPOILT = b"\xc1" * 40
"""A byte that msgpack never uses, often enough to cover any number or hash: what it hits cannot be
read. (Bytes changed into other valid ones are found out by no reader; that is TCP's and CURVE's.)
"""


class _Pipe:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, to_client: bool) -> None:
        self.source = source
        self.sink = sink
        self.to_client = to_client
        self.queue: deque[tuple[float, bytes]] = deque()


class FaultProxy:
    """Listens on `port` and passes on to `target_port`, both on the loopback."""

    def __init__(self, target_port: int, seed: int = 0) -> None:
        self.target_port = target_port
        """Of new connections."""
        self.refuses = False
        """New connections are closed at once."""
        self.holds = False
        """Bytes wait, in both directions."""
        self.swallows = False
        """Bytes towards the client vanish."""
        self.delay_s = 0.0
        self._random = random.Random(seed)
        self._spoil = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pipes: list[_Pipe] = []
        self._lock = threading.RLock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End every connection that stands."""
        with self._lock:
            for pipe in list(self._pipes):
                self._drop(pipe)

    def spoil(self, chunks: int = 1) -> None:
        """Bytes in the next chunks towards the client are overwritten with nonsense."""
        self._spoil = chunks

    def heal(self) -> None:
        """No fault any more; what was broken stays broken until it is made anew."""
        self.refuses = self.holds = self.swallows = False
        self.delay_s = 0.0
        self._spoil = 0

    def close(self) -> None:
        self._closing = True
        self._thread.join(5)
        with self._lock:
            self.cut()
        self._listener.close()
        self._selector.close()

    # -- its thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            ready = self._selector.select(_TURN_S)
            with self._lock:
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data in self._pipes:
                        self._read(key.data)
                for pipe in list(self._pipes):
                    self._write(pipe)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        if self.refuses:
            client.close()
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port), 1)
        except OSError:
            client.close()
            return
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink, to_client in ((client, server, False), (server, client, True)):
            pipe = _Pipe(source, sink, to_client)
            self._pipes.append(pipe)
            self._selector.register(source, selectors.EVENT_READ, pipe)

    def _read(self, pipe: _Pipe) -> None:
        try:
            chunk = pipe.source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._drop(pipe)
            return
        if pipe.to_client:
            if self.swallows:
                return
            chunk = self._spoilt(chunk)
        pipe.queue.append((time.monotonic() + self.delay_s, chunk))

    def _spoilt(self, chunk: bytes) -> bytes:
        if self._spoil <= 0 or len(chunk) <= 2 * len(SPOILT):
            return chunk
        self._spoil -= 1
        at = self._random.randrange(len(chunk) - len(SPOILT))
        return chunk[:at] + SPOILT + chunk[at + len(SPOILT) :]

    def _write(self, pipe: _Pipe) -> None:
        while pipe.queue and not self.holds and pipe in self._pipes:
            due, chunk = pipe.queue[0]
            if due > time.monotonic():
                return
            try:
                sent = pipe.sink.send(chunk)
            except BlockingIOError:
                return
            except OSError:
                self._drop(pipe)
                return
            if sent < len(chunk):
                pipe.queue[0] = (due, chunk[sent:])
                return
            pipe.queue.popleft()

    def _drop(self, pipe: _Pipe) -> None:
        """The whole connection that the pipe is a half of."""
        for one in [p for p in self._pipes if p.source in (pipe.source, pipe.sink)]:
            self._pipes.remove(one)
            with suppress(KeyError, ValueError):
                self._selector.unregister(one.source)
            one.source.close()
