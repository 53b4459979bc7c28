"""One replay: the conversation with an engine's ROUTER, from the question to the end marker.

`Conversation` is the logic, without socket or clock: what a reply means, when to ask again, when
to give up. `Replay` is its DEALER. Neither knows what the batches are for.

An engine before vLLM 0.33 loses replies, the end marker included, where its queue to us is full.
So a hole between two replies is asked for once more; only a question whose first reply is beyond
it shows that the engine does not hold it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import zmq

from aibrix_extproc.kvevents.sockets import (
    Context,
    Link,
    LinkEvent,
    LinkOptions,
    Switchboard,
)
from aibrix_extproc.kvevents.tap import SILENT, Tap
from aibrix_extproc.kvevents.wire import (
    BadFrame,
    BadFrames,
    ReplayBatch,
    ReplayEnd,
    parse_replay,
    replay_request,
)

_MAX_SILENCES: Final = 2
"""Time-outs in a row without a single batch."""
_MAX_QUESTIONS: Final = 20
"""Of one replay; holes after that are passed on as they are."""
_REFUSALS_OF_A_CLOSED_PORT: Final = 3
_SLOW_S: Final = 1.0
"""An engine that has not answered for so long does not hold up the questions to others."""
_DRAIN_LIMIT: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Question:
    """Whom to ask for which batches (sequence ≥ `start`), and how long to bear silence."""

    ask: int
    endpoint: str
    start: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class AskAgain:
    """Put the question anew on a new socket, from `start`: late replies must not mix in."""

    start: int


@dataclass(frozen=True, slots=True)
class ReplayFailed:
    """It is over without an end marker. `port_closed`: nobody listens there."""

    why: str
    port_closed: bool = False


Outcome = ReplayBatch | ReplayEnd | AskAgain | ReplayFailed


class Conversation:
    """What was asked, what came, and what that means."""

    def __init__(self, start: int, timeout_s: float, now: float) -> None:
        self._next = start
        self._timeout_s = timeout_s
        self._heard_at = now
        self._questions = 1
        self._silences = 0
        self._replies = 0
        self._refusals = 0
        self._reached = False

    def reply(self, frames: Sequence[bytes], now: float) -> Outcome | None:
        """Read one reply; None where it brings nothing new. Raises BadFrames."""
        reply = parse_replay(frames)
        self._reached = True
        self._heard_at = now
        if isinstance(reply, ReplayEnd):
            return reply
        if reply.sequence < self._next:
            return None
        if reply.sequence > self._next and self._replies > 0 and self._questions < _MAX_QUESTIONS:
            return self._again(now)
        self._replies += 1
        self._silences = 0
        self._next = reply.sequence + 1
        return reply

    def reached(self) -> None:
        """Someone who speaks ZMQ is at the port."""
        self._reached = True

    def cut(self, now: float) -> AskAgain | ReplayFailed | None:
        """The connection ended, and with it what was still to come. None before it stood."""
        if not self._reached:
            return None
        if self._questions >= _MAX_QUESTIONS:
            return ReplayFailed(f"the connection ended {self._questions} times")
        return self._again(now)

    def waits_since(self) -> float:
        """When the last reply came, or the last question was put."""
        return self._heard_at

    def refused(self) -> ReplayFailed | None:
        """A connection to the port was refused; once it was reached, that means a restart."""
        self._refusals += 1
        if self._reached or self._refusals < _REFUSALS_OF_A_CLOSED_PORT:
            return None
        return ReplayFailed("nobody listens on the replay port", port_closed=True)

    def check(self, now: float) -> AskAgain | ReplayFailed | None:
        """Whether the silence has become too long."""
        if now - self._heard_at < self._timeout_s:
            return None
        self._silences += 1
        if not self._reached:
            return ReplayFailed(f"no connection within {self._timeout_s:g} s")
        if self._silences >= _MAX_SILENCES or self._questions >= _MAX_QUESTIONS:
            return ReplayFailed(f"no reply within {self._timeout_s:g} s, {self._silences} times")
        return self._again(now)

    def _again(self, now: float) -> AskAgain:
        self._questions += 1
        self._refusals = 0
        self._reached = False
        self._replies = 0
        self._heard_at = now
        return AskAgain(self._next)


class Replay:
    """A DEALER that asks one engine. Used by one thread, which is called when it can be read."""

    def __init__(
        self,
        context: Context,
        board: Switchboard,
        handler: Callable[[float], None],
        question: Question,
        options: LinkOptions,
        now: float,
    ) -> None:
        """Connects and asks. Raises zmq.ZMQError for an endpoint that is none."""
        self.question = question
        self.tap: Tap = SILENT
        self._conversation = Conversation(question.start, question.timeout_s, now)
        self._context = context
        self._board = board
        self._handler = handler
        self._options = options
        self._link = self._ask(question.start)

    def read(
        self, limit: int, now: float
    ) -> Iterator[ReplayBatch | ReplayEnd | ReplayFailed | BadFrame]:
        """What has arrived, up to `limit` batches; stops early where it had to ask again.

        A reply that is none gives its reason; what it may have held shows as a hole.
        """
        messages = self._drain(limit, now)
        cut = False
        for event in self._link.events():
            if event is LinkEvent.UP:
                self._conversation.reached()
            elif event is LinkEvent.DOWN:
                cut = True
            elif event is LinkEvent.REFUSED and (failed := self._conversation.refused()):
                yield failed
                return
        if cut:
            messages += self._drain(_DRAIN_LIMIT, now)
        for frames in messages:
            try:
                outcome = self._conversation.reply(frames, now)
            except BadFrames as error:
                yield error.reason
                continue
            if isinstance(outcome, AskAgain):
                self._ask_again(outcome)
                return
            if outcome is not None:
                yield outcome
        if cut and (outcome := self._conversation.cut(now)) is not None:
            if isinstance(outcome, AskAgain):
                self._ask_again(outcome)
            else:
                yield outcome

    def _drain(self, limit: int, now: float) -> list[list[bytes]]:
        messages = self._link.drain(limit)
        for frames in messages:
            self.tap.answer(self.question.start, frames, now)
        return messages

    def receives(self, now: float) -> bool:
        """Whether replies come, or are to be expected at once: it takes memory and the engine."""
        return now - self._conversation.waits_since() < _SLOW_S

    def check(self, now: float) -> ReplayFailed | None:
        """Ask again, or give up, where the silence has become too long."""
        if self._link.dead:
            return ReplayFailed("whoever listens on the replay port is no ROUTER", port_closed=True)
        outcome = self._conversation.check(now)
        if isinstance(outcome, AskAgain):
            self._ask_again(outcome)
            return None
        return outcome

    def close(self) -> None:
        """Its sockets, at once."""
        self._link.close()

    def _ask_again(self, again: AskAgain) -> None:
        self._link.close()
        self._link = self._ask(again.start)

    def _ask(self, start: int) -> Link:
        link = Link(
            self._context,
            zmq.DEALER,
            self.question.endpoint,
            self._board,
            self._handler,
            self._options,
        )
        link.send(replay_request(start))
        return link


class PortWatch:
    """A connection that waits for a closed replay port to open. libzmq tries once a second."""

    def __init__(
        self,
        context: Context,
        board: Switchboard,
        on_open: Callable[[float], None],
        endpoint: str,
        options: LinkOptions,
    ) -> None:
        """Calls `on_open(now)` from the board's thread. Raises zmq.ZMQError."""
        self._on_open = on_open
        self._open: Callable[[], Link] = lambda: Link(
            context, zmq.DEALER, endpoint, board, self._readable, options
        )
        self._link = self._open()

    def tick(self) -> None:
        """Call it from time to time. Raises zmq.ZMQError."""
        if self._link.dead:
            self._link.close()
            self._link = self._open()

    def close(self) -> None:
        """Its sockets, at once."""
        self._link.close()

    def _readable(self, now: float) -> None:
        if LinkEvent.UP in self._link.events():
            self._on_open(now)
