"""The ledger counts what was sent and has not ended, whatever order things end in."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aibrix_extproc.routing.ledger import Ledger, Ticket, TicketState
from aibrix_extproc.routing.types import Load

LIMIT_S = 600.0


def test_a_reservation_counts_as_a_request_with_its_prefill() -> None:
    ledger = Ledger(LIMIT_S)
    ledger.reserve(1, 100, now=0.0)
    ledger.reserve(1, 20, now=0.0)
    assert ledger.loads(0.0) == {1: Load(requests=2, prefill_tokens=120, decoding=0)}


def test_who_only_looks_lets_nothing_go_that_a_decision_is_to_count() -> None:
    ledger = Ledger(LIMIT_S)
    ledger.reserve(1, 100, now=0.0)
    assert ledger.booked == {1: Load(requests=1, prefill_tokens=100, decoding=0)}
    assert ledger.expire(LIMIT_S) == 1
    assert ledger.booked == {}


def test_a_prefill_that_is_done_turns_tokens_into_a_decoding_request() -> None:
    ledger = Ledger(LIMIT_S)
    ticket = ledger.reserve(1, 100, now=0.0)
    ledger.prefill_done(ticket, 1.0)
    assert ledger.loads(1.0) == {1: Load(requests=1, prefill_tokens=0, decoding=1)}


def test_a_prefill_is_done_only_once() -> None:
    ledger = Ledger(LIMIT_S)
    ticket = ledger.reserve(1, 100, now=0.0)
    ledger.reserve(1, 7, now=0.0)
    ledger.prefill_done(ticket, 1.0)
    ledger.prefill_done(ticket, 1.0)
    assert ledger.loads(1.0)[1] == Load(requests=2, prefill_tokens=7, decoding=1)


@pytest.mark.parametrize("prefilled", [True, False])
def test_a_release_takes_back_what_was_reserved(prefilled: bool) -> None:
    ledger = Ledger(LIMIT_S)
    ticket = ledger.reserve(1, 100, now=0.0)
    if prefilled:
        ledger.prefill_done(ticket, 1.0)
    ledger.release(ticket)
    assert ledger.loads(1.0) == {}
    assert len(ledger) == 0


def test_a_second_release_changes_nothing() -> None:
    ledger = Ledger(LIMIT_S)
    ticket = ledger.reserve(1, 100, now=0.0)
    ledger.reserve(1, 7, now=0.0)
    ledger.release(ticket)
    ledger.release(ticket)
    ledger.prefill_done(ticket, 0.0)
    assert ledger.loads(0.0) == {1: Load(requests=1, prefill_tokens=7)}


def test_a_reservation_leaves_after_the_limit_and_not_before() -> None:
    ledger = Ledger(LIMIT_S)
    ledger.reserve(1, 100, now=0.0)
    assert ledger.loads(599.9)[1].requests == 1
    assert ledger.expire(600.0) == 1
    assert ledger.loads(600.0) == {}


def test_an_expected_length_ends_a_reservation_before_the_limit() -> None:
    ledger = Ledger(LIMIT_S)
    ledger.reserve(1, 100, now=0.0)
    ledger.reserve(2, 100, now=10.0, expected_s=5.0)
    assert set(ledger.loads(14.9)) == {1, 2}
    assert set(ledger.loads(15.0)) == {1}


def test_an_expected_length_beyond_the_limit_does_not_outlast_it() -> None:
    ledger = Ledger(LIMIT_S)
    ledger.reserve(1, 100, now=0.0, expected_s=10_000.0)
    assert ledger.expire(600.0) == 1


def test_a_ticket_that_expired_may_still_be_given_back() -> None:
    ledger = Ledger(LIMIT_S)
    ticket = ledger.reserve(1, 100, now=0.0)
    ledger.reserve(1, 7, now=300.0)
    ledger.prefill_done(ticket, 601.0)
    assert ticket.state is TicketState.PREFILL  # too late to begin to decode
    ledger.release(ticket)
    assert ledger.loads(601.0) == {1: Load(requests=1, prefill_tokens=7)}


def test_a_ticket_of_a_forgotten_source_may_still_be_given_back() -> None:
    ledger = Ledger(LIMIT_S)
    ticket = ledger.reserve(1, 100, now=0.0)
    ledger.reserve(2, 5, now=0.0)
    ledger.forget(1)
    ledger.reserve(1, 7, now=0.0)
    ledger.prefill_done(ticket, 0.0)
    ledger.release(ticket)
    assert ledger.loads(0.0) == {1: Load(1, 7), 2: Load(1, 5)}


def test_a_negative_prefill_is_refused() -> None:
    with pytest.raises(ValueError, match="a prefill of -1"):
        Ledger(LIMIT_S).reserve(1, -1, now=0.0)


def test_the_loads_cannot_be_changed_by_their_reader() -> None:
    ledger = Ledger(LIMIT_S)
    ledger.reserve(1, 1, now=0.0)
    with pytest.raises(TypeError):
        ledger.loads(0.0)[1] = Load()  # type: ignore[index]


def test_released_requests_leave_no_memory_behind_until_the_limit() -> None:
    ledger = Ledger(LIMIT_S)
    for _ in range(10_000):
        ledger.release(ledger.reserve(1, 1, now=0.0))
    assert len(ledger._deadlines) < 100


class LedgerAgainstRecount(RuleBasedStateMachine):
    """Random lives of requests; a list of open ones is counted anew after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(50.0)
        self.now = 0.0
        self.tickets: list[Ticket] = []
        self.open: dict[int, tuple[int, int, float, bool]] = {}  # source, tokens, end, decodes

    @rule(
        source=st.integers(0, 3),
        tokens=st.integers(0, 1000),
        expected_s=st.none() | st.integers(0, 80).map(float),
    )
    def reserve(self, source: int, tokens: int, expected_s: float | None) -> None:
        ticket = self.ledger.reserve(source, tokens, self.now, expected_s)
        self.tickets.append(ticket)
        lasts_s = 50.0 if expected_s is None else min(50.0, expected_s)
        self.open[ticket.id] = (source, tokens, self.now + lasts_s, False)

    @rule(choice=st.integers(0, 10_000))
    def prefill_done(self, choice: int) -> None:
        if not self.tickets:
            return
        ticket = self.tickets[choice % len(self.tickets)]
        self.ledger.prefill_done(ticket, self.now)
        entry = self.open.get(ticket.id)
        if entry and entry[2] > self.now:
            self.open[ticket.id] = (*entry[:3], True)

    @rule(choice=st.integers(0, 10_000))
    def release(self, choice: int) -> None:
        if self.tickets:
            ticket = self.tickets[choice % len(self.tickets)]
            self.ledger.release(ticket)
            self.open.pop(ticket.id, None)

    @rule(source=st.integers(0, 3))
    def forget(self, source: int) -> None:
        self.ledger.forget(source)
        self.open = {i: entry for i, entry in self.open.items() if entry[0] != source}

    @rule(passes_s=st.integers(1, 30))
    def wait(self, passes_s: int) -> None:
        self.now += passes_s

    @invariant()
    def equals_a_recount(self) -> None:
        self.open = {i: entry for i, entry in self.open.items() if entry[2] > self.now}
        counted: dict[int, Load] = {}
        for source, tokens, _, decodes in self.open.values():
            load = counted.get(source, Load())
            counted[source] = Load(
                load.requests + 1,
                load.prefill_tokens + (0 if decodes else tokens),
                load.decoding + decodes,
            )
        assert self.ledger.loads(self.now) == counted
        assert len(self.ledger) == len(self.open)


LedgerAgainstRecount.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestLedgerAgainstRecount = LedgerAgainstRecount.TestCase


@pytest.mark.parametrize("prefilled", [True, False])
def test_a_request_that_another_source_serves_weighs_there(prefilled: bool) -> None:
    ledger = Ledger(LIMIT_S)
    ticket = ledger.reserve(1, 100, now=0.0)
    if prefilled:
        ledger.prefill_done(ticket, 1.0)
    assert ledger.move(ticket, 2)
    here = Load(1, 0, 1) if prefilled else Load(1, 100, 0)
    assert ledger.loads(1.0) == {2: here}
    assert len(ledger) == 1
    ledger.release(ticket)
    assert ledger.loads(1.0) == {}
    assert len(ledger) == 0


def test_a_move_to_the_same_source_changes_nothing() -> None:
    ledger = Ledger(LIMIT_S)
    ticket = ledger.reserve(1, 100, now=0.0)
    assert ledger.move(ticket, 1)
    assert ledger.loads(0.0) == {1: Load(1, 100, 0)}


def test_what_is_over_is_not_moved() -> None:
    ledger = Ledger(LIMIT_S)
    ticket = ledger.reserve(1, 100, now=0.0)
    ledger.release(ticket)
    assert not ledger.move(ticket, 2)
    assert ledger.loads(0.0) == {}


def test_a_moved_request_leaves_with_its_new_source_and_by_its_time() -> None:
    ledger = Ledger(LIMIT_S)
    first, second = ledger.reserve(1, 100, now=0.0), ledger.reserve(1, 7, now=0.0)
    ledger.move(first, 2)
    ledger.forget(2)
    assert first.state is TicketState.GONE
    assert ledger.loads(0.0) == {1: Load(1, 7, 0)}
    ledger.move(second, 3)
    assert ledger.expire(LIMIT_S) == 1
    assert ledger.loads(LIMIT_S) == {}


def test_past_its_bound_those_due_to_leave_first_go_early() -> None:
    ledger = Ledger(limit_s=600, max_open=3)
    for number in range(3):
        assert ledger.make_room() == 0
        ledger.reserve(1, 10, now=0.0, expected_s=100.0 - number)
    assert ledger.make_room() == 1
    late = ledger.reserve(2, 10, now=0.0)
    assert len(ledger) == 3
    assert ledger.loads(0.0)[1].requests == 2
    assert ledger.expire(98.5) == 0  # the one due at 98 has gone already
    ledger.release(late)
    assert ledger.make_room() == 0
