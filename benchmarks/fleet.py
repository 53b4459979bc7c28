"""Event streams by the hundred in one thread: what many engines publish, and their replays.

Owns PUB and ROUTER sockets, numbers and replay buffers, as vLLM's publisher has them. Knows no
block: payloads come from whoever uses it. For measurements and long runs, where a thread for each
engine would take the processor from what is measured.
"""

import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import zmq

END_OF_REPLAY: Final = b"\xff" * 8
_TOPIC: Final = b""
_POLL_MS: Final = 200


@dataclass(eq=False)
class Stream:
    """One engine's event stream."""

    event_port: int
    replay_port: int
    pub: "zmq.Socket[bytes]"
    router: "zmq.Socket[bytes]"
    buffer: deque[tuple[int, bytes]]
    sequence: int = 0
    """Of the next batch."""


class Fleet:
    """A context manager; every method may be called from any thread."""

    def __init__(self, buffer_steps: int = 10_000) -> None:
        self._buffer_steps = buffer_steps
        self._context = zmq.Context(io_threads=1)
        self._context.setsockopt(zmq.MAX_SOCKETS, 8192)
        self._poller = zmq.Poller()
        self._routers: dict[Any, Stream] = {}
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_out.setblocking(False)
        self._poller.register(self._wake_out.fileno(), zmq.POLLIN)
        self._running = True
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._thread.start()

    def open(self) -> Stream:
        """A new engine process, on free ports."""
        return self._do(self._open)

    def close(self, stream: Stream) -> None:
        """The process ends; nothing is said."""
        self._do(lambda: self._close(stream))

    def restart(self, stream: Stream) -> None:
        """Another process on the same ports: number 0, an empty buffer."""
        self._do(lambda: self._restart(stream))

    def publish(self, stream: Stream, *payloads: bytes) -> None:
        """Batches, in order."""
        self._do(lambda: self._publish(stream, payloads))

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end)
        self._thread.join()

    # -- its thread ---------------------------------------------------------------------------

    def _do(self, job: Callable[[], Any]) -> Any:
        done: Future[Any] = Future()
        self._jobs.put((job, done))
        self._wake_in.send(b"\0")
        return done.result(60)

    def _run(self) -> None:
        while self._running:
            for readable, _ in self._poller.poll(_POLL_MS):
                if readable == self._wake_out.fileno():
                    self._wake_out.recv(4096)
                elif readable in self._routers:
                    self._answer(self._routers[readable])
            while self._running and not self._jobs.empty():
                job, done = self._jobs.get()
                try:
                    done.set_result(job())
                except Exception as error:  # noqa: BLE001 - whoever asked gets it
                    done.set_exception(error)

    def _end(self) -> None:
        self._running = False
        for stream in list(self._routers.values()):
            self._close(stream)
        self._context.term()

    def _open(self) -> Stream:
        pub, pub_port = self._bound(zmq.PUB, 0)
        router, router_port = self._bound(zmq.ROUTER, 0)
        stream = Stream(pub_port, router_port, pub, router, deque(maxlen=self._buffer_steps))
        self._watch(stream)
        return stream

    def _bound(self, kind: int, port: int) -> "tuple[zmq.Socket[bytes], int]":
        made = self._context.socket(kind)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.SNDHWM, 0)
        made.bind(f"tcp://127.0.0.1:{port or '*'}")
        endpoint = made.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        return made, int(endpoint.rstrip(b"\0").rpartition(b":")[2])

    def _watch(self, stream: Stream) -> None:
        self._routers[stream.router] = stream
        self._poller.register(stream.router, zmq.POLLIN)

    def _close(self, stream: Stream) -> None:
        self._poller.unregister(stream.router)
        del self._routers[stream.router]
        stream.pub.close(0)
        stream.router.close(0)

    def _restart(self, stream: Stream) -> None:
        self._close(stream)
        stream.pub, _ = self._again(zmq.PUB, stream.event_port)
        stream.router, _ = self._again(zmq.ROUTER, stream.replay_port)
        stream.sequence = 0
        stream.buffer.clear()
        self._watch(stream)

    def _again(self, kind: int, port: int) -> "tuple[zmq.Socket[bytes], int]":
        """Bind a port whose last socket ZMQ's own thread may still be closing."""
        for _ in range(200):
            try:
                return self._bound(kind, port)
            except zmq.ZMQError:
                self._poller.poll(10)
        return self._bound(kind, port)

    def _publish(self, stream: Stream, payloads: tuple[bytes, ...]) -> None:
        for payload in payloads:
            stream.buffer.append((stream.sequence, payload))
            stream.pub.send_multipart([_TOPIC, stream.sequence.to_bytes(8, "big"), payload])
            stream.sequence += 1

    def _answer(self, stream: Stream) -> None:
        peer, empty, start_bytes = stream.router.recv_multipart()
        start = int.from_bytes(start_bytes, "big")
        for sequence, payload in stream.buffer:
            if sequence >= start:
                number = sequence.to_bytes(8, "big")
                stream.router.send_multipart([peer, empty, _TOPIC, number, payload])
        stream.router.send_multipart([peer, empty, _TOPIC, END_OF_REPLAY, b""])
