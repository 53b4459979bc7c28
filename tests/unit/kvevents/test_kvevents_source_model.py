"""The state machine against a model of an engine, its connections and its replay port.

Whatever happens: what is held is an unbroken run of one process's batches, so every removal after
a store that is held was applied too; and EXACT means that the run began at 0, or holds a clear.
Once the faults are over, one step of the engine and 3 s bring the source to where the engine is,
with all that its replay buffer can still give.
"""

from collections import deque
from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aibrix_extproc.kvevents.asking import Question
from aibrix_extproc.kvevents.effects import ClearReason, SourceState
from aibrix_extproc.kvevents.source import SyncLimits
from tests.unit.kvevents.engine_model import Driver, batch, numbers

KINDS = st.sampled_from(["blocks"] * 6 + ["clear", "unreadable"])


LIMITS = SyncLimits(queue_bytes=1_100, idle_probe_s=10.0, stale_after_s=40.0, lost_after_s=60.0)
STEP_S = 0.1


class EngineModel(RuleBasedStateMachine):
    """An engine that publishes, burns, restarts; a network that loses, delays, breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(limits=LIMITS)
        self.process = 1
        self.next_number = 0
        self.buffer: deque[bytes] = deque(maxlen=6)
        self.attached: int | None = None
        """The process at the other end of the subscription."""
        self.wire: deque[bytes] = deque()
        """Published to us and not yet read."""
        self.breaking = False
        """The subscription is broken, which shows once the wire is read empty."""
        self.replies: deque[bytes] | None = None
        self.served_ask = 0
        self.reconnects = 0
        self.router = "answers"
        """Or `mute` (questions are lost), or `closed`."""
        self.turns = True
        """Questions are put at once; else they wait for their turn."""
        self.lost_asks: set[int] = set()
        self.at_peace = False
        self.discarded_at = 0
        """Nothing before this number is wanted back."""

    # -- the engine ---------------------------------------------------------------------------

    @rule(kind=KINDS, fate=st.sampled_from(["waits", "waits", "is read", "is read", "is lost"]))
    def publish(self, kind: str, fate: str) -> None:
        payload = batch(self.next_number, self.process, kind)
        self.next_number += 1
        self.buffer.append(payload)
        if self.attached == self.process and not self.breaking and fate != "is lost":
            self.wire.append(payload)
            if fate == "is read":
                self.read(len(self.wire))

    @rule()
    def burn_a_number(self) -> None:
        self.next_number += 1

    @rule(published=st.sampled_from(["nothing", "as much as before"]), seen=st.booleans())
    def restart(self, published: str, seen: bool) -> None:
        """`seen`: we were in sync with the process before, and met the new one at once."""
        if seen:
            self.get_in_sync(live_first=True)
        old_next = self.next_number
        self.process += 1
        self.next_number = self.discarded_at = 0
        self.buffer.clear()
        self.breaking = self.attached is not None
        if published == "as much as before":
            for _ in range(old_next):
                self.publish("blocks", "is lost")
        if seen:
            self.read_all_and_connect_anew()
            self.publish("blocks", "is read")

    # -- the subscription ---------------------------------------------------------------------

    @precondition(lambda self: self.wire)
    @rule(count=st.integers(1, 4))
    def read(self, count: int) -> None:
        for _ in range(min(count, len(self.wire))):
            payload = self.wire.popleft()
            number = numbers([payload])[0]
            self.driver._run(self.driver.sync.live(number, payload, self.driver.now))
            self._follow()
            if self.attached is None:
                return

    @precondition(lambda self: self.wire)
    @rule()
    def lose_what_is_on_the_wire(self) -> None:
        self.wire.clear()

    @precondition(lambda self: self.attached is not None)
    @rule()
    def break_connection(self) -> None:
        self.breaking = True

    @precondition(lambda self: self.breaking and not self.wire)
    @rule()
    def notice_the_break(self) -> None:
        if self.attached is not None:
            self.attached = None
            self.driver.disconnected()
            self._follow()
        self.breaking = False

    @rule()
    def read_all_and_connect_anew(self) -> None:
        """A short break, or the end of one: whoever is there now takes up the subscription."""
        while self.wire:
            self.read(4)
        self.breaking = self.attached is not None
        self.notice_the_break()
        self.connect()

    @precondition(lambda self: self.attached is None and not self.breaking)
    @rule()
    def connect(self) -> None:
        self.attached = self.process
        self.driver.connected()
        self._follow()

    # -- the replay port ----------------------------------------------------------------------

    @property
    def question(self) -> Question | None:
        """The one under way."""
        return self.driver.sync._asking.question

    @rule(router=st.sampled_from(["answers", "mute", "closed"]), turns=st.booleans())
    def change_the_router(self, router: str, turns: bool) -> None:
        was_closed = self.router == "closed"
        self.router, self.turns = router, turns
        if was_closed and router != "closed":
            self.driver.replay_port_open()
        self._follow()

    def _may_serve(self) -> bool:
        question = self.question
        if question is None or question.ask == self.served_ask:
            return False
        if question.heard_at is None or question.ask in self.lost_asks:
            return False
        if self.attached == self.process:
            return True
        # Answered by a process that the subscription has not met: found out wherever there is a
        # batch to know the old one by. (Two restarts within one question are left out.)
        first = numbers(list(self._held_from(question.start))[:1])
        known = self.driver.sync.sequence is not None and not self.driver.sync._unproven
        return known and question.start > 0 and first in ([], [question.start])

    def _held_from(self, start: int) -> deque[bytes]:
        return deque(p for p in self.buffer if numbers([p])[0] >= start)

    @precondition(lambda self: self._may_serve())
    @rule()
    def serve(self) -> None:
        question = self.question
        assert question is not None
        self.served_ask = question.ask
        self.replies = self._held_from(question.start)

    def _under_way(self) -> bool:
        question = self.question
        return self.replies is not None and question is not None and self.served_ask == question.ask

    @precondition(lambda self: self._under_way())
    @rule(count=st.integers(1, 6))
    def read_replies(self, count: int) -> None:
        assert self.replies is not None
        for _ in range(min(count, len(self.replies))):
            self.driver.answer(self.served_ask, self.replies.popleft())
            self._follow()
            if not self._under_way():
                return

    @precondition(lambda self: self._under_way() and not self.replies)
    @rule()
    def end_of_replies(self) -> None:
        self.driver.replay_ended()
        self._follow()

    @rule(live_first=st.booleans())
    def get_in_sync(self, live_first: bool) -> None:
        """Much of what matters begins with a source that is in sync."""
        while live_first and self.wire:
            self.read(4)
        if self._may_serve():
            self.serve()
        while self._under_way() and self.replies:
            self.read_replies(6)
        if self._under_way():
            self.end_of_replies()
        while self.wire:
            self.read(4)

    @precondition(lambda self: self.question is not None)
    @rule()
    def fail_replay(self) -> None:
        self.driver.replay_failed(port_closed=self.router == "closed")
        self._follow()

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5, 11.0, 70.0, 200.0]))
    def wait_while_nothing_is_read(self, seconds: float) -> None:
        self.driver.after(seconds)
        self._follow()

    @rule(seconds=st.sampled_from([0.5, 3.0, 12.0]))
    def let_time_pass(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            if self.at_peace and self.attached is None:
                self.connect()
            self.get_in_sync(live_first=True)
            self.driver.after(STEP_S)
            self._follow()

    @rule(seconds=st.sampled_from([-3600.0, -1.0, 3600.0]))
    def the_clock_jumps(self, seconds: float) -> None:
        self.driver.after(seconds)
        self._follow()

    @rule()
    def too_many_blocks(self) -> None:
        self.driver.discard(ClearReason.INFLATED)
        self.discarded_at = self.next_number

    @rule()
    def fail_ourselves(self) -> None:
        self.driver.failed()
        self._follow()

    def _follow(self) -> None:
        """Carry out a reconnection, and take a finished question for none."""
        if self.driver.reconnects != self.reconnects:
            self.reconnects = self.driver.reconnects
            self.attached = None
            self.breaking = False
            self.wire.clear()
        question = self.question
        if question is None or question.heard_at is not None or not self.turns:
            return
        if self.router == "closed":
            self.driver.replay_failed(port_closed=True)
            self._follow()
            return
        self.driver.replay_put()
        if self.router == "mute":
            self.lost_asks.add(question.ask)

    # -- what must hold -----------------------------------------------------------------------

    @invariant()
    def what_is_held_is_an_unbroken_run_of_one_process(self) -> None:
        held = self.driver.held
        assert len({payload.split(b"/")[0] for payload in held}) <= 1
        assert all(b == a + 1 for a, b in pairwise(numbers(held)))
        assert not any(payload.endswith(b"unreadable") for payload in held)

    @invariant()
    def exact_means_since_the_start_or_since_a_clear(self) -> None:
        held = self.driver.held
        if self.driver.state is SourceState.EXACT and held:
            assert numbers(held)[0] == 0 or any(p.endswith(b"clear") for p in held)

    @invariant()
    def nothing_is_believed_after_a_clear_until_it_is_in_sync_again(self) -> None:
        if self.driver.state in (SourceState.LOST, SourceState.CONNECTING):
            assert not self.driver.held
            assert not self.driver.sync.usable

    def teardown(self) -> None:
        self.at_peace = True
        self.change_the_router("answers", turns=True)
        if self.attached != self.process or self.breaking:
            self.read_all_and_connect_anew()
        self.driver.after(-self.driver.now)  # whatever the clock said, it goes on from there
        self.driver.now = self.driver.sync._latest
        self.publish("blocks", "waits")
        slowly = self.driver.sync._asking.refill_slowly or self.driver.sync._overflows
        self.let_time_pass(3.0 + (LIMITS.idle_probe_s if slowly else 0.0))
        assert self.driver.state in (SourceState.EXACT, SourceState.PARTIAL)
        assert self.driver.sync.usable
        last = numbers(list(self.buffer))[-1]
        assert self.driver.sync.sequence == last
        self.what_is_held_is_an_unbroken_run_of_one_process()
        self.exact_means_since_the_start_or_since_a_clear()
        held = numbers(self.driver.held)
        assert held[0] <= self._first_that_can_be_had(), "the buffer could give more"

    def _first_that_can_be_had(self) -> int:
        """The first number after which the buffer holds all, and nothing unreadable."""
        batches = list(self.buffer)
        first = numbers(batches)[-1]
        for payload in reversed(batches):
            number = numbers([payload])[0]
            if first - number > 1 or payload.endswith(b"unreadable"):
                break
            first = number
        cleared = [n for n, p in zip(numbers(batches), batches, strict=True) if _ends_clear(p)]
        return max([first, self.discarded_at, *cleared])


def _ends_clear(payload: bytes) -> bool:
    return payload.endswith(b"clear")


EngineModel.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, derandomize=True
)
TestAgainstAnEngine = EngineModel.TestCase
