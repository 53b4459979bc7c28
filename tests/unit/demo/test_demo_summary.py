"""The figures of a run."""

import pytest

from aibrix_extproc.demo.summary import percentile, ratio, summarise
from aibrix_extproc.loadtest.client import Outcome


def answered(ttft_s: float = 0.1, prompt: int = 100, cached: int | None = 50) -> Outcome:
    return Outcome(
        ttft_s=ttft_s,
        duration_s=2 * ttft_s,
        prompt_tokens=prompt,
        cached_tokens=cached,
        answer_tokens=8,
    )


def test_the_hit_ratio_is_over_tokens_not_requests() -> None:
    summary = summarise([answered(prompt=900, cached=900), answered(prompt=100, cached=0)], 1.0)
    assert summary.hit_ratio == 0.9


def test_errors_are_counted_by_reason_and_have_no_times() -> None:
    outcomes = [answered(), Outcome(error="HTTP 503", duration_s=99.0), Outcome(error="HTTP 503")]
    summary = summarise(outcomes, 2.0)
    assert summary.requests == 3
    assert summary.errors == 2
    assert summary.errors_by_reason == {"HTTP 503": 2}
    assert summary.duration_p90_s == 0.2
    assert summary.requests_per_s == 1.5


def test_no_hit_ratio_is_made_up_where_an_engine_does_not_say() -> None:
    assert summarise([answered(), answered(cached=None)], 1.0).hit_ratio is None


def test_a_run_of_nothing_has_no_figures() -> None:
    summary = summarise([], 0.0)
    assert summary.hit_ratio is None
    assert summary.ttft_p50_s is None
    assert summary.requests_per_s == 0


def test_the_json_holds_the_hit_ratio() -> None:
    assert summarise([answered()], 1.0).to_json()["hit_ratio"] == 0.5


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (50, 5), (90, 9), (91, 10), (100, 10), (1, 1)]
)
def test_percentiles_are_of_the_nearest_rank(percent: float, expected: int) -> None:
    assert percentile(range(10, 0, -1), percent) == expected


def test_a_ratio_without_a_whole_is_unknown() -> None:
    assert ratio(1, 0) is None
    assert ratio(None, 5) is None
    assert ratio(0, 5) == 0
