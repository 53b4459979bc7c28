"""Durations and sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.units import parse_duration_s, parse_size_bytes


@pytest.mark.parametrize("text", ["", "s", "1x", "1s2", "1 s", "-1s", "1e3", "inf", "nan", "1ss"])
def test_what_is_no_duration_is_refused_with_the_notation(text: str) -> None:
    with pytest.raises(ValueError, match="500ms"):
        parse_duration_s(text)


@pytest.mark.parametrize("text", ["", "MiB", "1 KB/s", "-1", "1TiB", "1e3", "nan"])
def test_what_is_no_size_is_refused_with_the_notation(text: str) -> None:
    with pytest.raises(ValueError, match="16MiB"):
        parse_size_bytes(text)


@given(st.integers(0, 10**6))
def test_milliseconds_and_seconds_agree(milliseconds: int) -> None:
    assert parse_duration_s(f"{milliseconds}ms") == pytest.approx(milliseconds / 1000)
    assert parse_duration_s(f"{milliseconds}s") == milliseconds


def test_parts_of_a_duration_add_up() -> None:
    assert parse_duration_s("1h2m3s4ms") == pytest.approx(3723.004)


def test_decimal_and_binary_sizes_differ() -> None:
    assert parse_size_bytes("1k") == 1000
    assert parse_size_bytes("1Ki") == 1024
    assert parse_size_bytes("1.5 GiB") == 3 * 512 * 1024 * 1024
