"""ZMQ sockets with their monitors, and the poller that calls who waits for them.

Owns options and events of sockets. Knows nothing of sources, batches or replays.
"""

import functools
import itertools
import operator
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import zmq

from aibrix_extproc.kvevents.curve import CurveKeys, load_curve_keys
from aibrix_extproc.settings import Settings

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]

_SILENT_HEARTBEATS: Final = 3
_CONNECT_TIMEOUT_MS: Final = 1_000
"""Else a lost SYN is repeated after 1, 3, 7, 15 … s, long after a cut network is whole again."""
_HANDSHAKE_TIMEOUT_MS: Final = 1_000
"""Else (30 s) a connection made while the engine was stopped, or its bytes lost, hangs on."""
_HANDSHAKE_S: Final = 1.2
"""The same once more: libzmq 4.3.5 was seen to wait for ever where a handshake's bytes are lost."""
_DEAD_AFTER_S: Final = 0.3
_KEEPALIVE_IDLE_S: Final = 30
_KEEPALIVE_INTERVAL_S: Final = 10
_KEEPALIVE_PROBES: Final = 3
_RECONNECT_MS: Final = 100
_RECONNECT_MAX_MS: Final = 500
_UNREAD_BATCHES: Final = 100_000
"""Above it ZMQ drops the subscription's batches, which shows as a gap."""
_MAX_SOCKETS: Final = 65_000
"""libzmq's default of 1023 ends at 340 sources: each has a SUB and the two ends of its monitor."""

_monitor_names = itertools.count()


class LinkEvent(IntEnum):
    """What a monitor tells, in libzmq's numbers."""

    REACHED = zmq.EVENT_CONNECTED
    """TCP stands, and the handshake begins."""
    UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
    DOWN = zmq.EVENT_DISCONNECTED
    REFUSED = zmq.EVENT_CONNECT_RETRIED
    """An attempt to connect failed; another follows."""
    NO_HANDSHAKE = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    """The peer hung up during the handshake: no ZMQ, another kind of socket, or not our keys."""
    BAD_HANDSHAKE = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    NOT_ADMITTED = zmq.EVENT_HANDSHAKE_FAILED_AUTH


HANDSHAKE_FAILED: Final = frozenset(
    {LinkEvent.NO_HANDSHAKE, LinkEvent.BAD_HANDSHAKE, LinkEvent.NOT_ADMITTED}
)


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """What all sockets towards engines have in common."""

    heartbeat_s: float
    max_message_bytes: int
    """A longer message ends the connection that brings it."""
    curve: CurveKeys | None = None


def link_options(settings: Settings) -> LinkOptions:
    """As the settings say. Raises SettingsError for keys that cannot be used."""
    return LinkOptions(
        settings.kv_heartbeat_s, settings.kv_max_message_bytes, load_curve_keys(settings)
    )


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
        options: LinkOptions,
    ) -> None:
        self._board = board
        self._broken_at: float | None = None
        self._reached_at: float | None = None
        self._socket = context.socket(kind)
        try:
            self._monitor = self._watch()
        except zmq.ZMQError:
            self._socket.close(0)
            raise
        try:
            self._set_options(kind, options)
            self._socket.connect(endpoint)
        except zmq.ZMQError:
            self.close()
            raise
        board.plug(self._socket, handler)
        board.plug(self._monitor, handler)

    def _watch(self) -> Socket:
        events = functools.reduce(operator.or_, LinkEvent)
        name = f"inproc://monitor-{next(_monitor_names)}"
        return self._socket.get_monitor_socket(events, name)

    def _set_options(self, kind: int, wanted: LinkOptions) -> None:
        heartbeat_ms = round(wanted.heartbeat_s * 1000)
        options = {
            zmq.LINGER: 0,
            zmq.IPV6: 1,
            zmq.RECONNECT_IVL: _RECONNECT_MS,
            zmq.RECONNECT_IVL_MAX: _RECONNECT_MAX_MS,
            zmq.CONNECT_TIMEOUT: _CONNECT_TIMEOUT_MS,
            zmq.HANDSHAKE_IVL: _HANDSHAKE_TIMEOUT_MS,
            zmq.HEARTBEAT_IVL: heartbeat_ms,
            zmq.HEARTBEAT_TIMEOUT: heartbeat_ms * _SILENT_HEARTBEATS,
            zmq.MAXMSGSIZE: wanted.max_message_bytes,
            zmq.TCP_KEEPALIVE: 1,
            zmq.TCP_KEEPALIVE_IDLE: _KEEPALIVE_IDLE_S,
            zmq.TCP_KEEPALIVE_INTVL: _KEEPALIVE_INTERVAL_S,
            zmq.TCP_KEEPALIVE_CNT: _KEEPALIVE_PROBES,
            zmq.RCVHWM: _UNREAD_BATCHES if kind == zmq.SUB else 0,
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        if wanted.curve is not None:
            self._socket.curve_serverkey = wanted.curve.server_public
            self._socket.curve_publickey = wanted.curve.public
            self._socket.curve_secretkey = wanted.curve.secret
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
            event = LinkEvent(number)
            events.append(event)
            down = event is LinkEvent.DOWN or event in HANDSHAKE_FAILED
            self._broken_at = time.monotonic() if down else None
            self._reached_at = time.monotonic() if event is LinkEvent.REACHED else None
        return events

    @property
    def dead(self) -> bool:
        """Whether it may never connect again: it must be replaced.

        libzmq says at once that it retries, except after bytes that are no ZMTP or a message that
        is too long (`session_base_t::engine_error`): then it leaves the socket alone for ever.
        """
        now = time.monotonic()
        if self._reached_at is not None and now - self._reached_at >= _HANDSHAKE_S:
            return True
        return self._broken_at is not None and now - self._broken_at >= _DEAD_AFTER_S

    def close(self) -> None:
        """Both sockets, at once: nothing unsent is waited for. Harmless when called again."""
        if self._socket.closed:
            return
        self._board.unplug(self._socket)
        self._board.unplug(self._monitor)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
