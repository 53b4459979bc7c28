"""Who may begin a request, given how long each candidate would take."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.routing.admission import (
    MAX_RETRY_AFTER_S,
    REASON,
    Delay,
    first_in_time,
    retry_after_s,
)
from aibrix_extproc.routing.types import Candidate, Decision, Load, Scored

LIMIT_S = 2.0


def ranked(count: int) -> Decision:
    pods = [Pod("default", f"pod-{i}", "uid", f"10.0.0.{i}:8000", "tiny") for i in range(count)]
    ranking = tuple(Scored(Candidate(i, pod), 0, Load(), float(i)) for i, pod in enumerate(pods))
    return Decision("prefix-cache", "prefix", ranking)


def of(delays: list[float]) -> Delay:
    return lambda scored: delays[scored.candidate.source]


def order(decision: Decision) -> list[int]:
    return [scored.candidate.source for scored in decision.ranking]


def test_the_first_choice_stays_where_it_can_begin_in_time_whatever_the_others_can() -> None:
    decision = ranked(3)
    assert first_in_time(decision, of([LIMIT_S, 0.0, 9.0]), LIMIT_S) is decision


def test_the_next_in_time_is_chosen_with_a_reason_of_its_own_and_the_late_ones_come_last() -> None:
    found = first_in_time(ranked(5), of([3.0, 2.1, 1.9, 5.0, 0.0]), LIMIT_S)
    assert isinstance(found, Decision)
    assert order(found) == [2, 4, 0, 1, 3]
    assert (found.reason, found.strategy) == (REASON, "prefix-cache")


def test_where_none_can_the_shortest_delay_is_told() -> None:
    assert first_in_time(ranked(3), of([9.0, 2.5, 4.0]), LIMIT_S) == 2.5


some_delays = st.lists(st.floats(0, 1e6), min_size=1, max_size=20)


@given(some_delays, st.floats(0.001, 1e4))
def test_nobody_is_refused_as_long_as_one_candidate_has_nothing_to_do(
    delays: list[float], limit_s: float
) -> None:
    found = first_in_time(ranked(len(delays) + 1), of([*delays, 0.0]), limit_s)
    assert isinstance(found, Decision)
    assert of([*delays, 0.0])(found.chosen) <= limit_s
    assert sorted(order(found)) == list(range(len(delays) + 1))


@given(some_delays, st.floats(0.001, 1e4), st.floats(0, 1e4))
def test_a_refusal_stays_one_with_more_to_do(
    delays: list[float], limit_s: float, more_s: float
) -> None:
    if isinstance(first_in_time(ranked(len(delays)), of(delays), limit_s), Decision):
        return
    more = [delay + more_s for delay in delays]
    assert not isinstance(first_in_time(ranked(len(delays)), of(more), limit_s), Decision)


@given(st.floats(0, 1e9), st.floats(0.001, 1e6), st.integers())
def test_the_time_to_come_again_is_whole_seconds_within_bounds_and_not_too_soon(
    delay_s: float, limit_s: float, seed: int
) -> None:
    found = retry_after_s(delay_s, limit_s, Random(seed))
    assert isinstance(found, int)
    assert 1 <= found <= MAX_RETRY_AFTER_S
    assert found >= min(delay_s - limit_s, MAX_RETRY_AFTER_S)


@pytest.mark.parametrize(("delay_s", "least", "most"), [(2.1, 1, 2), (12.0, 11, 21), (500, 60, 60)])
def test_those_who_are_refused_together_do_not_come_back_together(
    delay_s: float, least: int, most: int
) -> None:
    rng = Random(7)
    found = [retry_after_s(delay_s, LIMIT_S, rng) for _ in range(500)]
    assert (min(found), max(found)) == (least, most)
    per_second = 500 / (most - least + 1)
    assert max(found.count(s) for s in set(found)) < max(1.7 * per_second, 501 * (least == most))


def test_the_same_seed_gives_the_same_times() -> None:
    first, second = (
        [retry_after_s(9.0, LIMIT_S, rng) for _ in range(9)] for rng in (Random(3), Random(3))
    )
    assert first == second
