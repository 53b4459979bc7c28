"""Which batches are missing, from the numbers of those that came."""

import pytest

from aibrix_extproc.index.names import Names
from aibrix_extproc.kvevents.effects import Clear, ClearReason, Notice, Noticed
from aibrix_extproc.watch import numbers as numbers_module
from aibrix_extproc.watch.chains import Chains, Room
from aibrix_extproc.watch.numbers import Numbers, Step, spelled
from aibrix_extproc.watch.rates import WINDOW_S, Rates
from aibrix_extproc.watch.tally import Tally


def seen(*live: int) -> Numbers:
    numbers = Numbers()
    for number in live:
        numbers.live(number, b"%d" % number)
    return numbers


def test_a_stream_that_is_joined_late_misses_nothing() -> None:
    numbers = seen(57, 58)
    assert (numbers.first, numbers.last, numbers.missing, numbers.gaps) == (57, 58, 0, 0)


def test_the_numbers_within_a_gap_are_missing_by_name() -> None:
    numbers = seen(0, 5, 6, 8)
    assert numbers.holes == ((1, 4), (7, 7))
    assert (numbers.missing, numbers.gaps) == (5, 2)


def test_what_a_replay_brings_is_missing_no_more() -> None:
    numbers = seen(0, 5)
    assert [numbers.replayed(n) for n in (0, 2, 3)] == [False, True, True]
    assert numbers.holes == ((1, 1), (4, 4))
    assert (numbers.missing, numbers.refilled, numbers.gaps) == (2, 2, 1)


def test_a_number_that_goes_down_is_a_restart_and_its_holes_are_forgotten() -> None:
    numbers = seen(0, 5)
    assert numbers.live(2, b"new") is Step.RESTART
    assert (numbers.first, numbers.missing) == (2, 0)


def test_the_same_number_is_a_restart_only_with_another_payload() -> None:
    numbers = seen(0, 1)
    assert numbers.live(1, b"1") is Step.REPEATED
    assert numbers.live(1, b"other") is Step.RESTART


def test_a_number_that_no_replay_holds_is_missing_before_the_first_live_one_too() -> None:
    numbers = seen(9)
    for reply in (3, 4, 6, 7):
        numbers.replayed(reply)
    assert numbers.holes == ((5, 5),)


def test_two_answers_are_no_hole_between_them_and_no_hole_counts_twice() -> None:
    numbers = seen(20)
    for answer in ((0, 1, 4), (10, 11), (0, 1, 4)):
        for reply in answer:
            numbers.replayed(reply)
        numbers.replay_over()
    assert numbers.holes == ((2, 3),)


def test_endless_holes_are_counted_and_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers_module, "MAX_HOLES", 3)
    numbers = seen(*range(0, 20, 2))
    assert len(numbers.holes) == 3
    assert numbers.missing == 9


def test_holes_are_spelled_and_the_oldest_left_out() -> None:
    assert spelled([(5, 9), (13, 13)]) == "5-9, 13"
    assert spelled([(n, n) for n in (1, 3, 5, 7, 9)]) == "…, 3, 5, 7, 9"


def test_a_rate_is_of_the_last_seconds_alone() -> None:
    rates = Rates(1)
    for second in range(20):
        rates.add(0, 10, float(second))
    assert rates.per_s(19.9)[0] == pytest.approx(10, rel=0.25)
    assert rates.per_s(19.9 + 2 * WINDOW_S) == (0.0,)


def test_a_young_source_is_not_made_smaller_by_the_window() -> None:
    rates = Rates(1)
    rates.add(0, 10, 100.0)
    rates.add(0, 10, 101.9)
    assert rates.per_s(102.0)[0] == pytest.approx(10)


def tally() -> Tally:
    return Tally("e", Chains(Names(0), Room()), lambda now: now)


def message(number: int) -> list[bytes]:
    return [b"", number.to_bytes(8, "big"), b"%d" % number]


def test_another_process_behind_growing_numbers_has_no_holes_of_the_one_before() -> None:
    """It restarted unseen and passed the old number: only the replay shows it."""
    counted = tally()
    for number in (0, 5):
        counted.message(message(number), 1.0)
    counted.effect(Noticed(Notice.RESTART))
    counted.effect(Clear(ClearReason.RESTART))
    row = counted.row(1.0)
    assert (row.missing, row.restarts, row.gaps) == (0, 1, 1)


def test_a_source_that_is_cleared_for_a_gap_keeps_its_holes() -> None:
    counted = tally()
    for number in (0, 5):
        counted.message(message(number), 1.0)
    counted.effect(Clear(ClearReason.GAP))
    assert counted.row(1.0).holes == ((1, 4),)
