"""Binning: no value is lost, none is invented, and each stays within 4.4 % of where it was."""

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aibrix_extproc.loadtest.report.bins import (
    LOWEST,
    PER_OCTAVE,
    SQUARE,
    bin_of,
    bins_of,
    bins_of_counts,
    lower_s,
    square_of,
    upper_s,
)

seconds = st.floats(-10, 1e6, allow_nan=False)


@given(st.lists(seconds))
def test_no_value_is_lost_and_none_invented(values: list[float]) -> None:
    found = bins_of(values)
    assert found.total == len(values)
    assert sum(found.to_json()["count"]) == len(values)
    assert all(number > 0 for _, number in found.counts)


@given(seconds)
@example(0.0)
@example(lower_s(0))
@example(math.nextafter(lower_s(-37), 0))
@example(lower_s(-37))
def test_a_value_is_in_its_bin_and_a_bin_is_narrow(value: float) -> None:
    place = bin_of(value)
    assert value < upper_s(place)
    assert place == LOWEST or value >= lower_s(place)
    assert upper_s(place) / lower_s(place) == pytest.approx(2 ** (1 / PER_OCTAVE))


def test_the_ends_of_bins_fall_where_they_belong() -> None:
    for place in range(LOWEST + 1, 20 * PER_OCTAVE):
        assert bin_of(lower_s(place)) == place
        assert bin_of(math.nextafter(upper_s(place), 0)) == place


@given(st.lists(st.integers(0, 10**7), max_size=200))
def test_values_that_were_counted_fall_into_the_same_bins(values: list[int]) -> None:
    assert bins_of_counts(Counter(values), 1e-5) == bins_of([value * 1e-5 for value in values])


@given(st.lists(st.floats(1e-4, 100), min_size=1))
def test_a_cumulative_curve_rises_to_1_and_is_right_at_each_end_of_a_bin(
    values: list[float],
) -> None:
    curve = bins_of(values).cumulative()
    assert curve[0][1] == 0
    assert curve[-1][1] == 1
    for (before_s, less), (after_s, more) in pairwise(curve):
        assert before_s < after_s
        assert less <= more
    for at_s, share in curve:
        assert share == sum(value < at_s for value in values) / len(values)


def test_nothing_has_no_curve() -> None:
    assert bins_of([]).cumulative() == []
    assert bins_of([]).to_json() == {"upper_s": [], "count": []}


@given(st.lists(st.tuples(st.floats(-1, 2), st.floats(-1, 2))))
def test_a_square_holds_every_pair(shares: list[tuple[float, float]]) -> None:
    cells = square_of(shares)
    assert sum(number for _, _, number in cells) == len(shares)
    assert all(0 <= x < SQUARE and 0 <= y < SQUARE for x, y, _ in cells)


def test_a_share_is_in_its_cell() -> None:
    assert square_of([(0.0, 1.0), (0.52, 0.049)]) == ((0, SQUARE - 1, 1), (10, 0, 1))
