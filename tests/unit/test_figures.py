"""What many values come to."""

import math
from collections import Counter
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.figures import Distribution, plain, rank, spread


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_a_percentile_is_one_of_the_values(share: float, wanted: int) -> None:
    assert rank(range(1, 101), share) == wanted


def test_no_values_have_no_distribution() -> None:
    assert math.isnan(Distribution.of([]).p99)
    assert math.isnan(Distribution.of_counts({}, 1.0).p50)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=300))
def test_values_that_were_counted_have_the_distribution_of_the_values(values: list[int]) -> None:
    listed = Distribution.of([value * 0.25 for value in values])
    counted = Distribution.of_counts(Counter(values), 0.25)
    assert astuple(counted) == pytest.approx(astuple(listed))


def test_the_spread_is_the_largest_by_the_mean() -> None:
    assert spread([3, 1]) == 1.5
    assert math.isnan(spread([0, 0]))
    assert math.isnan(spread([]))


def test_what_does_not_exist_is_null_in_json() -> None:
    given = {"a": {"b": math.nan, "c": 1.5}, "d": math.inf, "e": ({"f": math.nan}, 1)}
    assert plain(given) == {"a": {"b": None, "c": 1.5}, "d": None, "e": [{"f": None}, 1]}
