"""An engine and an index small enough to be believed, for the tests of the state machine.

A payload says whose it is: (process, number, kind). Kind is `blocks` (stores and removals),
`clear` (it ends with AllBlocksCleared, or blocks follow one) or `unreadable`.
"""

from dataclasses import dataclass, field

from aibrix_extproc.kvevents.effects import (
    Apply,
    AskReplay,
    CancelReplay,
    Clear,
    ClearReason,
    Effects,
    Notice,
    Noticed,
    Reconnect,
    SourceState,
    StaleChanged,
    StateChanged,
)
from aibrix_extproc.kvevents.source import SourceSync, SyncLimits

LIMITS = SyncLimits(queue_bytes=100_000, idle_probe_s=10.0, stale_after_s=120.0, lost_after_s=60.0)


def batch(number: int, process: int = 1, kind: str = "blocks") -> bytes:
    """The payload that this engine process sends with this number."""
    return f"{process}/{number}/{kind}".encode()


def numbers(payloads: list[bytes]) -> list[int]:
    return [int(payload.split(b"/")[1]) for payload in payloads]


@dataclass
class Driver:
    """Carries out effects against a recording index."""

    has_replay: bool = True
    limits: SyncLimits = LIMITS
    now: float = 100.0
    held: list[bytes] = field(default_factory=list)
    """Payloads applied since the last clear."""
    clears: list[ClearReason] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    states: list[SourceState] = field(default_factory=list)
    question: AskReplay | None = None
    questions: list[int] = field(default_factory=list)
    """Where each replay asked for began."""
    reconnects: int = 0
    stale: bool = False

    def __post_init__(self) -> None:
        self.sync = SourceSync(self.limits, has_replay=self.has_replay, now=self.now)

    @property
    def state(self) -> SourceState:
        return self.sync.state

    @property
    def held_numbers(self) -> list[int]:
        return numbers(self.held)

    def connected(self) -> None:
        self._run(self.sync.connected(self.now))

    def disconnected(self) -> None:
        self._run(self.sync.disconnected(self.now))

    def live(self, *wanted: int, process: int = 1, kind: str = "blocks") -> None:
        for number in wanted:
            self._run(self.sync.live(number, batch(number, process, kind), self.now))

    def replayed(self, *wanted: int, process: int = 1, kind: str = "blocks") -> None:
        """Answers to the last question asked."""
        ask = self._ask
        for number in wanted:
            self._run(self.sync.replayed(ask, number, batch(number, process, kind), self.now))

    def answer(self, ask: int, payload: bytes) -> None:
        self._run(self.sync.replayed(ask, numbers([payload])[0], payload, self.now))

    def replay_ended(self) -> None:
        self._run(self.sync.replay_ended(self._ask, self.now))

    def replay_failed(self, *, port_closed: bool = False) -> None:
        self._run(self.sync.replay_failed(self._ask, port_closed=port_closed, now=self.now))

    def failed(self) -> None:
        self._run(self.sync.failed(self.now))

    def replay_put(self) -> None:
        """The question leaves; before, it waits for its turn."""
        self._run(self.sync.replay_put(self._ask, self.now))

    def replay_port_open(self) -> None:
        self._run(self.sync.replay_port_open(self.now))

    def discard(self, reason: ClearReason) -> None:
        self._run(self.sync.discard(reason, self.now))

    def after(self, seconds: float) -> None:
        self.now += seconds
        self._run(self.sync.tick(self.now))

    @property
    def _ask(self) -> int:
        assert self.question is not None, "no replay was asked for"
        return self.question.ask

    def _run(self, effects: Effects) -> None:
        while effects:
            loss, cleared, was_applied = None, False, False
            for effect in effects:
                assert not was_applied, "an Apply is the last effect"
                match effect:
                    case Apply(number, payload):
                        assert numbers([payload]) == [number]
                        self.held.append(payload)
                        was_applied = True
                        cleared = payload.endswith(b"clear")
                        loss = ClearReason.LOSSY if payload.endswith(b"unreadable") else None
                    case Clear(reason):
                        self.clears.append(reason)
                        self.held.clear()
                    case AskReplay():
                        self.question = effect
                        self.questions.append(effect.start)
                    case CancelReplay(ask):
                        assert self._ask == ask
                        self.question = None
                    case Reconnect():
                        self.reconnects += 1
                    case Noticed(what):
                        self.notices.append(what)
                    case StaleChanged(stale):
                        self.stale = stale
                    case StateChanged(before, after):
                        assert before == (self.states or [SourceState.CONNECTING])[-1]
                        self.states.append(after)
            if not was_applied:
                return
            unreadable = loss is not None
            effects = self.sync.applied(
                cleared=cleared, loss=loss, unreadable=unreadable, now=self.now
            )
