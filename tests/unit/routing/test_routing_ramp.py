"""How the load of a pod that has just joined counts."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.routing.ramp import Ramp
from aibrix_extproc.routing.types import Candidate, Load

LASTS_S = 20.0


def pod(number: int) -> Pod:
    return Pod("default", f"pod-{number}", "uid", f"10.0.0.{number}:8000", "tiny")


def among(count: int) -> list[Candidate]:
    return [Candidate(number, pod(number)) for number in range(count)]


def busy(count: int) -> tuple[Ramp, dict[int, Load]]:
    """A ramp that has seen decisions, and so many pods with ten requests each."""
    ramp, loads = Ramp(LASTS_S), {number: Load(10, 4000, 6) for number in range(count)}
    ramp.counted(loads, among(count), 0.0)
    return ramp, loads


def requests(ramp: Ramp, loads: dict[int, Load], now: float, count: int = 3) -> list[int]:
    counted = ramp.counted(loads, among(count), now)
    return [counted.get(number, Load()).requests for number in range(count)]


def test_a_pod_that_joins_counts_as_busy_as_the_others_and_less_so_as_time_goes() -> None:
    ramp, loads = busy(2)
    ramp.on_pod(None, pod(2), 100.0)
    for after_s, counts in ((0.0, 10), (5.0, 8), (10.0, 5), (19.0, 1), (20.0, 0), (500.0, 0)):
        assert requests(ramp, loads, 100.0 + after_s) == [10, 10, counts], after_s


def test_its_own_requests_count_beside() -> None:
    ramp, loads = busy(2)
    ramp.on_pod(None, pod(2), 0.0)
    assert requests(ramp, {**loads, 2: Load(3, 0, 1)}, 10.0) == [10, 10, 5 + 3]


def test_prompt_tokens_that_others_are_promised_do_not_count_for_it() -> None:
    ramp, loads = busy(2)
    ramp.on_pod(None, pod(2), 0.0)
    assert ramp.counted(loads, among(3), 0.0)[2] == Load(10, 0, 6)


def test_a_pod_that_is_ready_again_or_another_engine_joins_anew() -> None:
    ramp, loads = busy(3)
    idle = {0: loads[0], 1: loads[1]}
    one = pod(2)
    ramp.on_pod(one, replace(one, ready=False), 1.0)
    assert requests(ramp, idle, 1.0) == [10, 10, 0]
    ramp.on_pod(replace(one, ready=False), one, 2.0)
    assert requests(ramp, idle, 2.0) == [10, 10, 10]
    ramp.on_pod(one, replace(one, uid="another"), 12.0)
    assert requests(ramp, idle, 12.0) == [10, 10, 10]


def test_a_change_of_its_labels_is_no_joining() -> None:
    ramp, loads = busy(2)
    ramp.on_pod(pod(2), replace(pod(2), labels={"a": "b"}), 0.0)
    assert requests(ramp, loads, 0.0) == [10, 10, 0]


@pytest.mark.parametrize("later", [replace(pod(2), ready=False), None])
def test_a_pod_that_goes_again_is_forgotten(later: Pod | None) -> None:
    ramp, loads = busy(2)
    ramp.on_pod(None, pod(2), 0.0)
    ramp.on_pod(pod(2), later, 1.0)
    assert ramp.share(pod(2).key, 1.0) == 0.0
    assert requests(ramp, loads, 1.0) == [10, 10, 0]


def test_the_pods_of_a_start_are_not_ramped() -> None:
    ramp = Ramp(LASTS_S)
    for number in range(3):
        ramp.on_pod(None, pod(number), float(number))
    assert requests(ramp, {0: Load(requests=8)}, 3.0) == [8, 0, 0]


def test_where_all_candidates_have_just_joined_the_loads_stay_as_they_are() -> None:
    ramp, loads = busy(2)
    for number in (5, 6):
        ramp.on_pod(None, pod(number), 0.0)
    both = [Candidate(number, pod(number)) for number in (5, 6)]
    mine = {**loads, 5: Load(requests=4)}
    assert ramp.counted(mine, both, 0.0) is mine


def test_pods_that_join_together_do_not_count_for_each_other() -> None:
    ramp, loads = busy(2)
    for number in (2, 3, 4, 5, 6):
        ramp.on_pod(None, pod(number), 0.0)
    assert requests(ramp, loads, 0.0, count=7) == [10] * 7


def test_switched_off_it_changes_nothing() -> None:
    ramp, loads = Ramp(0.0), {0: Load(requests=9)}
    ramp.counted(loads, among(2), 0.0)
    ramp.on_pod(None, pod(1), 0.0)
    assert ramp.counted(loads, among(2), 0.0) is loads


@given(
    st.lists(st.builds(Load, *[st.integers(0, 500)] * 3), min_size=1, max_size=8),
    st.builds(Load, *[st.integers(0, 500)] * 3),
    st.floats(0, 2 * LASTS_S),
)
def test_no_load_counts_as_less_than_it_is_and_the_others_stay(
    others: list[Load], own: Load, after_s: float
) -> None:
    ramp = Ramp(LASTS_S)
    loads = dict(enumerate(others))
    ramp.counted(loads, among(len(others)), 0.0)
    place = len(others)
    ramp.on_pod(None, pod(place), 0.0)
    counted = ramp.counted({**loads, place: own}, among(place + 1), after_s)
    assert {number: counted[number] for number in loads} == loads
    mine = counted[place]
    assert own.requests <= mine.requests <= own.requests + max(one.requests for one in others)
    assert own.decoding <= mine.decoding <= own.decoding + max(one.decoding for one in others)
    assert mine.prefill_tokens == own.prefill_tokens
