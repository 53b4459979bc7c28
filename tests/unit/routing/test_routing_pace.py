"""How long a source would take to begin one more request, from what it was sent and did."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aibrix_extproc.routing.pace import (
    FASTEST_TOKENS_PER_S,
    REQUEST_TOKENS,
    SLOWEST_TOKENS_PER_S,
    Pace,
    Work,
)

POD, OTHER, GROUP = 1, 2, "tiny"
PACE = 1000.0
PROMPT = 1000 - REQUEST_TOKENS
"""What takes an engine of that pace a second, with all that a request costs."""


def send(
    pace: Pace, now: float, tokens: int = PROMPT, source: int = POD, seen: bool = True
) -> Work:
    return pace.sent(source, GROUP, tokens, now, is_seen=seen)


def known(source: int = POD) -> tuple[Pace, float]:
    """A source that was seen to do 1,000 tokens a second, and has nothing to do; and the time."""
    pace, now = Pace(), 0.0
    for _ in range(5):
        work = send(pace, now, source=source)
        now += 1.0
        pace.began(work, now)
        pace.ended(work, now)
    assert pace.tokens_per_s(source, GROUP) == pytest.approx(PACE)
    return pace, now


def delay(pace: Pace, now: float, source: int = POD) -> float:
    return pace.delay_s(source, GROUP, now)


def test_a_source_that_was_sent_nothing_can_begin_at_once() -> None:
    assert delay(Pace(), 5.0) == 0.0


def test_what_was_sent_before_must_be_computed_first() -> None:
    pace, now = known()
    for waiting in range(1, 5):
        send(pace, now)
        assert delay(pace, now) == pytest.approx(waiting)


def test_a_prompt_that_is_being_computed_has_less_left_as_time_goes() -> None:
    pace, now = known()
    send(pace, now)
    send(pace, now)
    assert delay(pace, now + 0.75) == pytest.approx(1.25)


def test_an_answer_that_begins_early_tells_that_all_before_it_is_computed() -> None:
    pace, now = known()
    send(pace, now)
    second = send(pace, now)
    send(pace, now)
    assert delay(pace, now + 1.0) == pytest.approx(2.0)
    pace.began(second, now + 1.0)
    assert delay(pace, now + 1.0) == pytest.approx(1000 / pace.tokens_per_s(POD, GROUP))


def test_an_answer_that_does_not_begin_holds_up_those_behind_it_by_as_much_as_it_is_late() -> None:
    pace, now = known()
    send(pace, now)
    send(pace, now)
    assert delay(pace, now + 1.0) == pytest.approx(1.0)
    assert delay(pace, now + 4.0) == pytest.approx(1.0 + 3.0)
    assert delay(pace, now + 60.0) == pytest.approx(1.0 + 59.0)


def test_of_one_that_is_late_alone_the_lateness_is_what_the_next_must_expect() -> None:
    """Its prompt is short: what holds it up is a full batch, a full cache, or a dead engine."""
    pace, now = known()
    send(pace, now, tokens=0)
    late_s = 10.0 - REQUEST_TOKENS / PACE
    assert delay(pace, now + 10.0) == pytest.approx(late_s)


def test_who_was_told_of_a_long_wait_is_not_late_before_it_is_over() -> None:
    pace, now = known()
    works = [send(pace, now) for _ in range(10)]
    pace.began(works[0], now + 1.0)
    assert delay(pace, now + 2.0) == pytest.approx(8.0)
    assert delay(pace, now + 2.5) == pytest.approx(8.0 + 0.5)  # the second should have begun


def test_no_answer_is_late_as_long_as_none_was_ever_seen_to_begin() -> None:
    """An Envoy that does not show response headers: all answers seem never to begin."""
    pace = Pace()
    for at in range(10):
        pace.ended(send(pace, at), at + 0.9)
    send(pace, 100.0)
    assert delay(pace, 150.0) == pytest.approx(0.0, abs=0.01)


def test_one_that_others_have_overtaken_holds_up_nobody() -> None:
    pace, now = known()
    send(pace, now)
    later = send(pace, now)
    pace.began(later, now + 1.0)
    assert delay(pace, now + 500.0) == 0.0


def test_a_client_that_leaves_takes_its_prompt_along() -> None:
    pace, now = known()
    works = [send(pace, now) for _ in range(4)]
    pace.ended(works[2], now)
    assert delay(pace, now) == pytest.approx(3.0)
    pace.ended(works[0], now + 0.5)  # half of it was computed
    assert delay(pace, now + 0.5) == pytest.approx(2.0)
    pace.ended(works[1], now + 0.5)
    pace.ended(works[3], now + 0.5)
    assert delay(pace, now + 0.5) == 0.0


def test_what_clients_take_along_does_not_count_as_computed() -> None:
    pace, now = known()
    works = [send(pace, now) for _ in range(6)]
    for work in works[1:5]:
        pace.ended(work, now)
    pace.began(works[0], now + 1.0)
    pace.began(works[5], now + 2.0)
    assert pace.tokens_per_s(POD, GROUP) == pytest.approx(PACE)


def test_an_error_of_the_engine_is_no_prompt_computed() -> None:
    pace, now = known()
    for _ in range(20):
        pace.began(send(pace, now), now + 0.001, is_computed=False)
    assert pace.tokens_per_s(POD, GROUP) == pytest.approx(PACE)
    assert delay(pace, now + 0.001) == 0.0


# -- the pace -------------------------------------------------------------------------------------


def test_prompts_that_are_done_in_one_step_count_together() -> None:
    pace, now = Pace(), 0.0
    for _ in range(5):
        works = [send(pace, now) for _ in range(4)]
        now += 4.0
        for work in works:
            pace.began(work, now)
        now += 10.0
    assert pace.tokens_per_s(POD, GROUP) == pytest.approx(PACE)


def test_time_in_which_there_was_nothing_to_do_does_not_count() -> None:
    pace, now = Pace(), 0.0
    for pause_s in (0.0, 100.0, 3.0, 1000.0):
        work = send(pace, now)
        now += 1.0
        pace.began(work, now)
        now += pause_s
    assert pace.tokens_per_s(POD, GROUP) == pytest.approx(PACE)


def test_an_answer_that_is_not_streamed_teaches_nothing_when_it_comes() -> None:
    """Its headers come with its end, long after its prompt was computed."""
    pace, now = known()
    for _ in range(20):
        work = send(pace, now, seen=False)
        now += 30.0
        pace.began(work, now)
        pace.ended(work, now)
    assert pace.tokens_per_s(POD, GROUP) == pytest.approx(PACE)


def test_an_answer_that_is_not_streamed_counts_for_as_long_as_its_prompt_takes() -> None:
    pace, now = known()
    send(pace, now, seen=False)
    assert delay(pace, now) == pytest.approx(1.0)
    assert delay(pace, now + 0.5) == pytest.approx(0.5)
    assert delay(pace, now + 20.0) == 0.0


def test_what_is_not_seen_does_not_make_what_is_seen_after_it_slow() -> None:
    pace, now = known()
    for _ in range(30):
        send(pace, now, seen=False)  # two of a second each, of which only one is seen to begin
        pace.began(send(pace, now), now + 2.0)
        now += 100.0
    assert pace.tokens_per_s(POD, GROUP) == pytest.approx(PACE)


def test_between_two_beginnings_what_is_not_seen_counts_as_work() -> None:
    pace, now = known()
    for _ in range(30):
        first, _, last = send(pace, now), send(pace, now, seen=False), send(pace, now)
        pace.began(first, now + 1.0)
        pace.began(last, now + 3.0)
        now += 100.0
    assert pace.tokens_per_s(POD, GROUP) == pytest.approx(PACE)


def test_a_pace_that_changes_is_followed_within_some_fifty_prompts() -> None:
    pace, now = known()
    for _ in range(50):
        work = send(pace, now)
        now += 0.25
        pace.began(work, now)
    assert pace.tokens_per_s(POD, GROUP) == pytest.approx(4 * PACE, rel=0.15)


def test_a_source_of_which_nothing_was_seen_is_as_fast_as_the_others_of_its_model() -> None:
    pace, now = known()
    send(pace, now, source=OTHER)
    assert delay(pace, now, OTHER) == pytest.approx(1.0)
    assert pace.tokens_per_s(OTHER, "another") == FASTEST_TOKENS_PER_S


def test_answers_that_begin_at_once_give_a_pace_that_keeps_nobody_away() -> None:
    pace = Pace()
    for at in range(10):
        pace.began(send(pace, at, tokens=8000), at + 1e-4)
    assert pace.tokens_per_s(POD, GROUP) == FASTEST_TOKENS_PER_S
    assert pace.is_beyond_belief(POD)
    assert not known()[0].is_beyond_belief(POD)


def test_a_source_that_is_gone_is_forgotten_and_its_answers_change_nothing() -> None:
    pace, now = known()
    work, other = send(pace, now), send(pace, now)
    pace.forget(POD)
    pace.began(work, now)
    pace.ended(other, now)
    assert delay(pace, now) == 0.0


@given(
    before=st.lists(st.tuples(st.integers(0, 20_000), st.booleans()), max_size=12),
    more=st.integers(0, 20_000),
    after_s=st.floats(0, 5),
)
def test_with_more_to_do_the_delay_is_never_shorter(
    before: list[tuple[int, bool]], more: int, after_s: float
) -> None:
    less, now = known()
    much, _ = known()
    for tokens, seen in before:
        send(less, now, tokens, seen=seen)
        send(much, now, tokens, seen=seen)
    send(much, now, more)
    # What is late by a rounding error is no difference.
    assert delay(much, now + after_s) >= delay(less, now + after_s) - 1e-6


class Account(RuleBasedStateMachine):
    """Whatever happens in whatever order, the figures are numbers that make sense."""

    def __init__(self) -> None:
        super().__init__()
        self.pace = Pace()
        self.now = 0.0
        self.open: list[Work] = []

    @rule(tokens=st.integers(0, 100_000), source=st.sampled_from([POD, OTHER]), seen=st.booleans())
    def send(self, tokens: int, source: int, seen: bool) -> None:
        before = delay(self.pace, self.now, source)
        self.open.append(send(self.pace, self.now, tokens, source, seen))
        assert delay(self.pace, self.now, source) >= before

    @precondition(lambda self: self.open)
    @rule(place=st.integers(0, 50), is_computed=st.booleans())
    def begin(self, place: int, is_computed: bool) -> None:
        self.pace.began(self.open[place % len(self.open)], self.now, is_computed=is_computed)

    @precondition(lambda self: self.open)
    @rule(place=st.integers(0, 50))
    def end(self, place: int) -> None:
        self.pace.ended(self.open.pop(place % len(self.open)), self.now)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def forget(self) -> None:
        self.pace.forget(OTHER)
        self.open = [work for work in self.open if work.source != OTHER]

    @invariant()
    def figures_make_sense(self) -> None:
        for source in (POD, OTHER):
            pace = self.pace.tokens_per_s(source, GROUP)
            assert SLOWEST_TOKENS_PER_S <= pace <= FASTEST_TOKENS_PER_S
            found = delay(self.pace, self.now, source)
            assert 0.0 <= found < math.inf
            account = self.pace._accounts.get(source)
            assert account is None or account.done <= account.sent


Account.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAccount = Account.TestCase
