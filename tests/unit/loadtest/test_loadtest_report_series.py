"""Steps of time and counters that were read: nothing is lost between them."""

from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.loadtest.report import series
from aibrix_extproc.loadtest.report.results import RequestResult, Sample


def request(intended_s: float, prompt: int = 100, cached: int | None = 50) -> RequestResult:
    return RequestResult(
        "s", 0, intended_s, intended_s, intended_s + 1, prompt_tokens=prompt, cached_tokens=cached
    )


@given(st.floats(0, 1e5))
def test_a_run_has_at_most_sixty_steps_and_no_fewer_than_a_third_of_it(duration_s: float) -> None:
    step = series.step_s(duration_s)
    steps = max(duration_s, 1e-3) / step
    assert series.MOST_STEPS / 3 <= steps <= series.MOST_STEPS + 1e-6


@given(st.lists(st.floats(0, 500)), st.floats(0.1, 100))
def test_no_request_is_lost_between_steps(due: list[float], step: float) -> None:
    found = series.reuse(map(request, due), step)
    assert sum(one.requests for one in found) == len(due)
    assert sum(one.prompt_tokens for one in found) == 100 * len(due)
    assert sum(one.cached_tokens for one in found) == 50 * len(due)


def test_requests_whose_reuse_is_not_told_are_left_out() -> None:
    assert series.reuse([request(1.0, cached=None), request(1.0, prompt=0, cached=0)], 1.0) == ()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=200))
def test_no_decision_is_lost_between_readings_however_many_there_are(more: list[int]) -> None:
    total, samples = 7, [Sample(0.0, {"prefix_match": 7})]
    for number, one in enumerate(more):
        total += one
        samples.append(Sample(number + 1.0, {"prefix_match": total}))
    found = series.decided(samples)
    assert sum(sum(step.by_reason.values()) for step in found) == sum(more)
    assert len(found) <= series.MOST_STEPS
    assert (found[0].start_s, found[-1].end_s) == (0.0, float(len(more)))


def test_a_counter_that_began_anew_counts_from_0() -> None:
    assert series.increase_over([100, 130, None, 20, 25]) == 30 + 20 + 5
    assert series.increase_over([100]) is None
    assert series.increase(None, 5) is None


def test_a_reason_that_is_first_seen_later_counts_from_0() -> None:
    (step,) = series.decided([Sample(0.0, {}), Sample(2.0, {"random": 3})])
    assert step.by_reason == {"random": 3}
