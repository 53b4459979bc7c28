"""ZMQ towards engines, as the server does it: subscriptions that listen, and replays from 0.

Owns two threads' worth of work: `Listening` reads all event ports until it is closed, and
`ask_replays` asks all replay ports once. The sockets, their options and their keys are the
server's own (`kvevents.sockets`). What messages mean is for `batches`.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

import zmq

from aibrix_extproc.doctor.batches import Summary
from aibrix_extproc.doctor.facts import Batches, ReplaySeen
from aibrix_extproc.kvevents.replay import Question, Replay, ReplayFailed
from aibrix_extproc.kvevents.sockets import Link, LinkEvent, LinkOptions, Switchboard, new_context
from aibrix_extproc.kvevents.wire import BadFrame, ReplayEnd

_POLL_S: Final = 0.05
_DRAIN: Final = 1_000
_MAX_MESSAGES: Final = 20_000
_MAX_BATCHES: Final = 20_000
"""Twice vLLM's default buffer."""


class Listening:
    """Subscribes to event ports and keeps what comes. A context manager; methods from any thread.

    Raises zmq.ZMQError for an endpoint that is none.
    """

    def __init__(self, endpoints: Sequence[str], options: LinkOptions) -> None:
        self._context = new_context()
        self._board = Switchboard()
        self._messages: list[list[list[bytes]]] = [[] for _ in endpoints]
        self._up = [False for _ in endpoints]
        self._closing = threading.Event()
        self._links = [
            Link(self._context, zmq.SUB, endpoint, self._board, lambda now: None, options)
            for endpoint in endpoints
        ]
        self._thread = threading.Thread(target=self._run, name="doctor-events", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()
        for link in self._links:
            link.close()
        self._context.term()

    def connected(self, number: int) -> bool:
        """Whether the handshake with this port has succeeded."""
        return self._up[number]

    def messages(self, number: int) -> list[list[bytes]]:
        """What has come from this port so far."""
        return list(self._messages[number])

    def _run(self) -> None:
        while not self._closing.is_set():
            self._board.poll(_POLL_S)
            for number, link in enumerate(self._links):
                if LinkEvent.UP in link.events():
                    self._up[number] = True
                for frames in link.drain(_DRAIN):
                    if len(self._messages[number]) < _MAX_MESSAGES:
                        self._messages[number].append(frames)


def ask_replays(
    endpoints: Sequence[str], options: LinkOptions, timeout_s: float
) -> list[ReplaySeen]:
    """Ask each replay port for everything from 0. At most about four time-outs long."""
    context = new_context()
    board = Switchboard()
    until = time.monotonic() + 4 * timeout_s
    try:
        asked = {
            number: _Asked(
                Replay(
                    context,
                    board,
                    lambda now: None,
                    Question(number, endpoint, 0, timeout_s),
                    options,
                    time.monotonic(),
                )
            )
            for number, endpoint in enumerate(endpoints)
        }
        _read_all(asked, board, until)
    finally:
        context.destroy(0)
    return [asked[number].seen() for number in range(len(endpoints))]


class _Asked:
    """One replay under way."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.over = False
        self._summary = Summary()
        self._ended = False
        self._failure = ""

    def read(self, now: float) -> None:
        for outcome in self.replay.read(_DRAIN, now):
            if isinstance(outcome, ReplayEnd):
                self._ended = True
            elif isinstance(outcome, ReplayFailed):
                self._failure = outcome.why
            elif isinstance(outcome, BadFrame):
                self._summary.bad(outcome)
            else:
                self._summary.replayed(outcome)
        failed = None if self._ended else self.replay.check(now)
        if failed is not None:
            self._failure = failed.why
        self.over = self._ended or bool(self._failure) or self.is_full

    @property
    def is_full(self) -> bool:
        return len(self._summary) >= _MAX_BATCHES

    def seen(self) -> ReplaySeen:
        batches: Batches = self._summary.done()
        failure = self._failure
        if not (self._ended or failure or self.is_full):
            failure = "it did not come to its end in time" if batches.count else "no reply"
        return ReplaySeen(self._ended, batches, failure)


def _read_all(asked: Mapping[int, _Asked], board: Switchboard, until: float) -> None:
    while (now := time.monotonic()) < until:
        under_way = [one for one in asked.values() if not one.over]
        if not under_way:
            break
        board.poll(_POLL_S)
        for one in under_way:
            one.read(now)
            if one.over:
                one.replay.close()
    for one in asked.values():
        one.replay.close()
