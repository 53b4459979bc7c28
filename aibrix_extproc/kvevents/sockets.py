"""ZMQ sockets with their monitors, and the poller that calls who waits for them.

Owns options and events of sockets. Knows nothing of sources, batches or replays.
"""

import itertools
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Final

import zmq

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]

_HEARTBEAT_INTERVAL_MS: Final = 5_000
_HEARTBEAT_TIMEOUT_MS: Final = 15_000
_KEEPALIVE_IDLE_S: Final = 30
_KEEPALIVE_INTERVAL_S: Final = 10
_KEEPALIVE_PROBES: Final = 3
_RECONNECT_MS: Final = 100
_RECONNECT_MAX_MS: Final = 1_000
_UNREAD_BATCHES: Final = 100_000
"""Above it ZMQ drops the subscription's batches, which shows as a gap."""
_MAX_SOCKETS: Final = 65_000
"""libzmq's default of 1023 ends at 340 sources: each has a SUB and the two ends of its monitor."""

_monitor_names = itertools.count()


class LinkEvent(IntEnum):
    """What a monitor tells, in libzmq's numbers."""

    UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
    DOWN = zmq.EVENT_DISCONNECTED
    REFUSED = zmq.EVENT_CONNECT_RETRIED
    """An attempt to connect failed; another follows."""


def new_context() -> Context:
    """A context that is large enough for any number of sources."""
    context: Context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
    return context


class Switchboard:
    """A poller that knows whom to call for each socket. Used by one thread."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._handlers: dict[Socket | int, Callable[[float], None]] = {}

    def plug(self, socket: Socket | int, handler: Callable[[float], None]) -> None:
        """Call `handler(now)` whenever the socket, or file descriptor, has something to read."""
        self._poller.register(socket, zmq.POLLIN)
        self._handlers[socket] = handler

    def unplug(self, socket: Socket | int) -> None:
        """No call any more; to be done before the socket is closed."""
        if self._handlers.pop(socket, None) is not None:
            self._poller.unregister(socket)

    def poll(self, timeout_s: float) -> list[Socket | int]:
        """The sockets that can be read, within `timeout_s`."""
        return [socket for socket, _ in self._poller.poll(round(timeout_s * 1000))]

    def handler(self, socket: Socket | int) -> Callable[[float], None] | None:
        """Whom to call; None where it was unplugged since the poll."""
        return self._handlers.get(socket)


class Link:
    """One connection to an engine: a socket and its monitor, plugged in until `close`.

    Raises zmq.ZMQError for an endpoint that is none, and where no more sockets may be opened.
    """

    def __init__(
        self,
        context: Context,
        kind: int,
        endpoint: str,
        board: Switchboard,
        handler: Callable[[float], None],
    ) -> None:
        self._board = board
        self._socket = context.socket(kind)
        try:
            self._monitor = self._watch()
        except zmq.ZMQError:
            self._socket.close(0)
            raise
        try:
            self._set_options(kind)
            self._socket.connect(endpoint)
        except zmq.ZMQError:
            self.close()
            raise
        board.plug(self._socket, handler)
        board.plug(self._monitor, handler)

    def _watch(self) -> Socket:
        events = LinkEvent.UP | LinkEvent.DOWN | LinkEvent.REFUSED
        name = f"inproc://monitor-{next(_monitor_names)}"
        return self._socket.get_monitor_socket(events, name)

    def _set_options(self, kind: int) -> None:
        options = {
            zmq.LINGER: 0,
            zmq.IPV6: 1,
            zmq.RECONNECT_IVL: _RECONNECT_MS,
            zmq.RECONNECT_IVL_MAX: _RECONNECT_MAX_MS,
            zmq.HEARTBEAT_IVL: _HEARTBEAT_INTERVAL_MS,
            zmq.HEARTBEAT_TIMEOUT: _HEARTBEAT_TIMEOUT_MS,
            zmq.TCP_KEEPALIVE: 1,
            zmq.TCP_KEEPALIVE_IDLE: _KEEPALIVE_IDLE_S,
            zmq.TCP_KEEPALIVE_INTVL: _KEEPALIVE_INTERVAL_S,
            zmq.TCP_KEEPALIVE_CNT: _KEEPALIVE_PROBES,
            zmq.RCVHWM: _UNREAD_BATCHES if kind == zmq.SUB else 0,
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        if kind == zmq.SUB:
            self._socket.setsockopt(zmq.SUBSCRIBE, b"")

    def send(self, frames: list[bytes]) -> None:
        """Queue a message for the peer."""
        self._socket.send_multipart(frames)

    def drain(self, limit: int) -> list[list[bytes]]:
        """Up to `limit` messages that have arrived; never waits."""
        messages: list[list[bytes]] = []
        while len(messages) < limit:
            try:
                messages.append(self._socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
        return messages

    def events(self) -> list[LinkEvent]:
        """What the monitor has told since the last call, in order; never waits."""
        events = []
        while self._monitor.poll(0):
            head, _address = self._monitor.recv_multipart(zmq.NOBLOCK)
            number, _value = struct.unpack("=HI", head)
            events.append(LinkEvent(number))
        return events

    def close(self) -> None:
        """Both sockets, at once: nothing unsent is waited for. Harmless when called again."""
        if self._socket.closed:
            return
        self._board.unplug(self._socket)
        self._board.unplug(self._monitor)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
