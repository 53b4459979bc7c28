"""Sends one rank's batches over ZMQ and answers replays, in a thread, as vLLM's publisher does.

Owns the sockets, the sequence and the buffer of past batches. Knows nothing of blocks. From
vLLM's `ZmqEventPublisher`: three frames on PUB (topic, sequence, payload); the ROUTER is served
between two publishes, so an idle engine answers within 100 ms; a batch that cannot be encoded
burns its number.

Faults can be asked for, batch by batch: a batch that is lost on the way (`drop_next`: a replay
still has it), a number that is burnt (`burn_next`: nothing has it).
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import zmq

from aibrix_extproc.fakes.events import Event

_LOG = logging.getLogger(__name__)

END_OF_REPLAY: Final = b"\xff" * 8
HIGH_WATER_MARK: Final = 100_000
"""Messages that PUB keeps for a slow subscriber; vLLM's default."""
_IDLE_WAIT_S: Final = 0.1
_JOIN_TIMEOUT_S: Final = 5.0

Encode = Callable[[float, Sequence[Event]], bytes]


class _Fault(Enum):
    DROP = "drop"
    BURN = "burn"


@dataclass(frozen=True, slots=True)
class _Batch:
    timestamp: float
    events: Sequence[Event]
    fault: _Fault | None


class EventPublisher:
    """The event stream of one rank. `publish` and the faults may be called from any one thread.

    `port` and `replay_port` hold the bound ports; 0 asks the system for one, and a `replay_port`
    of None means that no replay is offered. Raises OSError where a port is taken.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        replay_port: int | None = 0,
        topic: str = "",
        buffer_steps: int = 10_000,
        replay_names_topic: bool = True,
    ) -> None:
        self.topic = topic
        self._encode = encode
        self._topic = topic.encode()
        self._replay_names_topic = replay_names_topic
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer_steps)
        self._queue: queue.Queue[_Batch | None] = queue.Queue()
        self._faults: deque[_Fault] = deque()
        self._given = 0
        self._settled = 0
        self._sequence = 0
        self._context = zmq.Context()
        try:
            self._pub = self._context.socket(zmq.PUB)
            self._pub.set_hwm(HIGH_WATER_MARK)
            self.port = _bind(self._pub, host, port)
            self._router: zmq.Socket[bytes] | None = None
            self.replay_port: int | None = None
            if replay_port is not None:
                self._router = self._context.socket(zmq.ROUTER)
                self.replay_port = _bind(self._router, host, replay_port)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise OSError(error.errno, f"ports {port} and {replay_port}: {error}") from None
        self._thread = threading.Thread(
            target=self._run, name=f"kv-events-{self.port}", daemon=True
        )
        self._thread.start()

    @property
    def sequence(self) -> int:
        """The number of the next batch, once all that was given to `publish` is sent."""
        return self._sequence

    @property
    def sent_all(self) -> bool:
        """Whether every batch given to `publish` is on its way and in the buffer."""
        return self._settled == self._given

    def publish(self, events: Sequence[Event], timestamp: float | None = None) -> None:
        """Queue one batch; an empty one is not sent and takes no number."""
        if not events:
            return
        fault = self._faults.popleft() if self._faults else None
        self._given += 1
        self._queue.put(_Batch(time.time() if timestamp is None else timestamp, events, fault))

    def drop_next(self, batches: int = 1) -> None:
        """The next batches are not sent, as if lost on the way; a replay still has them."""
        self._faults.extend([_Fault.DROP] * batches)

    def burn_next(self, batches: int = 1) -> None:
        """The next batches take a number and are neither sent nor kept, as if not encodable."""
        self._faults.extend([_Fault.BURN] * batches)

    def close(self) -> None:
        """Send what is queued, then stop. Idempotent; blocks for the length of one send."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(_JOIN_TIMEOUT_S)
        self._context.destroy(linger=0)

    def _run(self) -> None:
        while True:
            self._serve_replays()
            try:
                batch = self._queue.get(timeout=_IDLE_WAIT_S)
            except queue.Empty:
                continue
            if batch is None:
                return
            self._send(batch)
            self._settled += 1

    def _send(self, batch: _Batch) -> None:
        number, self._sequence = self._sequence, self._sequence + 1
        if batch.fault is _Fault.BURN:
            return
        try:
            payload = self._encode(batch.timestamp, batch.events)
        except (TypeError, ValueError, OverflowError) as error:
            _LOG.warning("batch %d cannot be encoded, its number is burnt: %s", number, error)
            return
        self._buffer.append((number, payload))
        if batch.fault is not _Fault.DROP:
            self._pub.send_multipart((self._topic, number.to_bytes(8, "big"), payload))

    def _serve_replays(self) -> None:
        router = self._router
        if router is None or not router.poll(0):
            return
        frames = router.recv_multipart()
        if len(frames) != 3 or len(frames[2]) != 8:
            _LOG.warning("a replay request of %d frames is not answered", len(frames))
            return
        client, start = frames[0], int.from_bytes(frames[2], "big")
        for number, payload in self._buffer:
            if number >= start:
                named = self._reply_topic(self._topic)
                router.send_multipart((client, b"", *named, number.to_bytes(8, "big"), payload))
        router.send_multipart((client, b"", *self._reply_topic(b""), END_OF_REPLAY, b""))

    def _reply_topic(self, topic: bytes) -> tuple[bytes, ...]:
        return (topic,) if self._replay_names_topic else ()


def _bind(socket: "zmq.Socket[bytes]", host: str, port: int) -> int:
    socket.bind(f"tcp://{host}:{port or '*'}")
    return int(socket.get_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
