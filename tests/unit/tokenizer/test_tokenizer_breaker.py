"""When an endpoint is left alone, and how it comes back."""

from aibrix_extproc.tokenizer.breaker import Breaker, BreakerState


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(failures=3, cooldown_s=10)
    for _ in range(3):
        breaker.fail(now)
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    breaker = Breaker(failures=3, cooldown_s=10)
    breaker.fail(0)
    breaker.fail(0)
    assert breaker.allows(0)
    breaker.fail(0)
    assert not breaker.allows(9.9)


def test_a_success_in_between_starts_the_count_over() -> None:
    breaker = Breaker(failures=3, cooldown_s=10)
    for _ in range(5):
        breaker.fail(0)
        breaker.fail(0)
        breaker.succeed()
    assert breaker.allows(0)


def test_after_the_cooldown_one_trial_is_allowed_and_no_second() -> None:
    breaker = opened()
    assert breaker.allows(10)
    breaker.begin()
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.allows(1000)


def test_a_trial_that_succeeds_closes_it() -> None:
    breaker = opened()
    breaker.begin()
    breaker.succeed()
    assert breaker.state is BreakerState.CLOSED
    breaker.fail(11)
    assert breaker.allows(11)


def test_a_trial_that_fails_opens_it_for_another_cooldown() -> None:
    breaker = opened()
    breaker.begin()
    breaker.fail(10)
    assert not breaker.allows(19.9)
    assert breaker.allows(20)


def test_a_trial_that_is_cancelled_leaves_the_trial_to_the_next() -> None:
    breaker = opened()
    breaker.begin()
    breaker.abandon(10)
    assert breaker.allows(10)


def test_a_late_failure_does_not_lengthen_the_cooldown() -> None:
    breaker = opened(now=0)
    breaker.fail(9)
    assert breaker.allows(10)


def test_a_call_that_is_cancelled_while_closed_changes_nothing() -> None:
    breaker = Breaker(failures=1, cooldown_s=10)
    breaker.begin()
    breaker.abandon(0)
    assert breaker.allows(0)
