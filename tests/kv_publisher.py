"""A real PUB and ROUTER that publish as vLLM does, with faults on request.

One thread owns both sockets, and serves replays between publishes, as vLLM's publisher does.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

import msgpack
import zmq

from tests.support import free_port

_END = b"\xff" * 8
_POLL_MS = 5


def stored(hashes: list[int], parent: int | None = None, block_size: int = 4) -> dict[str, object]:
    """A BlockStored of today's shape; the tokens of a block follow from its hash."""
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens_of(hashes, block_size),
        "block_size": block_size,
        "lora_id": None,
        "medium": "GPU",
    }


def tokens_of(hashes: Iterable[int], block_size: int = 4) -> list[int]:
    """The tokens of the blocks with these hashes."""
    return [h * block_size + i for h in hashes for i in range(block_size)]


def removed(hashes: list[int]) -> dict[str, object]:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU"}


def all_cleared() -> dict[str, object]:
    return {"type": "AllBlocksCleared"}


def payload_of(*events: dict[str, object]) -> bytes:
    """One batch, with the time of now."""
    payload: bytes = msgpack.packb([time.time(), events, 0])
    return payload


class KvPublisher:
    """One rank's publisher. `restart` is a new engine process on the same ports."""

    def __init__(
        self,
        *,
        buffer_steps: int = 10_000,
        topic: str = "kv@10.0.0.1@m",
        replay_has_topic: bool = True,
        replays: bool = True,
        answer_delay_s: float = 0.0,
    ) -> None:
        self.port = free_port()
        self.replay_port = free_port()
        self.asked_from: list[int] = []
        """Where each replay asked for began."""
        self.answers = True
        """False: questions are read and not answered."""
        self.loses_replies: set[int] = set()
        """Numbers whose reply is lost, once each."""
        self._buffer_steps = buffer_steps
        self._topic = topic.encode()
        self._replay_has_topic = replay_has_topic
        self._replays = replays
        self._answer_delay_s = answer_delay_s
        self._jobs: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._thread: threading.Thread | None = None
        self.start()

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def replay_endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.replay_port}"

    # -- what an engine does ------------------------------------------------------------------

    def publish(self, *events: dict[str, object], lost: bool = False) -> int:
        """One batch; `lost`: it reaches the buffer and no subscriber. Returns its number."""
        number = self.next_number
        self._do(lambda: self._publish(list(events), lost))
        return number

    def publish_raw(self, frames: list[bytes]) -> None:
        """Any frames at all, on PUB."""
        self._do(lambda: self._pub.send_multipart(frames))

    def burn(self) -> None:
        """A batch that could not be encoded: its number is gone."""
        self._do(lambda: self._count(1))

    # -- process ------------------------------------------------------------------------------

    def start(self) -> None:
        """A new engine process: number 0, an empty buffer."""
        self.next_number = 0
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=self._buffer_steps)
        self._running = True
        bound = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(bound,), daemon=True)
        self._thread.start()
        assert bound.wait(10), "the ports could not be bound"

    def stop(self) -> None:
        """The process ends; nothing is said."""
        if self._thread is not None:
            self._running = False
            self._thread.join()
            self._thread = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> "KvPublisher":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- its thread ---------------------------------------------------------------------------

    def _do(self, job: Callable[[], None]) -> None:
        done: Future[None] = Future()
        self._jobs.append((job, done))
        done.result(10)

    def _count(self, by: int) -> None:
        self.next_number += by

    def _run(self, bound: threading.Event) -> None:
        context = zmq.Context()
        self._pub = context.socket(zmq.PUB)
        router = context.socket(zmq.ROUTER)
        for socket in (self._pub, router):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, 0)
        self._bind(self._pub, self.port)
        if self._replays:
            self._bind(router, self.replay_port)
        bound.set()
        while self._running:
            if router.poll(_POLL_MS if not self._jobs else 0):
                self._serve(router)
            while self._jobs:
                job, done = self._jobs.popleft()
                job()
                done.set_result(None)
        self._pub.close(0)
        router.close(0)
        context.term()

    @staticmethod
    def _bind(socket: "zmq.Socket[bytes]", port: int) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.bind(f"tcp://127.0.0.1:{port}")
            except zmq.ZMQError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _publish(self, events: list[dict[str, object]], lost: bool) -> None:
        payload = payload_of(*events)
        number = self.next_number
        self.next_number += 1
        self._buffer.append((number, payload))
        if not lost:
            self._pub.send_multipart([self._topic, number.to_bytes(8, "big"), payload])

    def _serve(self, router: "zmq.Socket[bytes]") -> None:
        peer, empty, start_bytes = router.recv_multipart()
        assert (empty, len(start_bytes)) == (b"", 8)
        start = int.from_bytes(start_bytes, "big")
        self.asked_from.append(start)
        if not self.answers:
            return
        topic = [self._topic] if self._replay_has_topic else []
        for number, payload in self._buffer:
            if number < start:
                continue
            if number in self.loses_replies:
                self.loses_replies.remove(number)
                continue
            if self._answer_delay_s:
                time.sleep(self._answer_delay_s)
            router.send_multipart([peer, b"", *topic, number.to_bytes(8, "big"), payload])
        router.send_multipart([peer, b"", *([b""] if topic else []), _END, b""])
