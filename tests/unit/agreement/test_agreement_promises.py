"""What a pod was sent and has answered is looked for among what its events say."""

from array import array

import pytest

from aibrix_extproc.agreement.promises import (
    BURST,
    DEADLINE_S,
    FIRST_LOOK_S,
    MAX_PENDING,
    MAX_TOKENS,
    Found,
    Kind,
    Look,
    Promise,
    Promises,
)


def promise(
    tokens: int = 100, source: int = 1, adapter: str | None = None, salt: str | None = None
) -> Promise:
    return Promise("tiny", "default/a", source, array("I", range(tokens)), adapter, salt, 7)


def look(depth: int, believed: bool = True, sequence: int | None = 9, size: int = 16) -> Look:
    return Look(depth, size, believed, sequence)


def outcome(at: float, seen: Look, **of: int) -> Found | None:
    promises = Promises()
    assert promises.take(promise(**of), 0.0)
    return promises.settle(promises.due(at)[0], seen, at)


def test_blocks_that_are_there_confirm() -> None:
    assert outcome(FIRST_LOOK_S, look(6)) is Found.CONFIRMED


def test_the_last_blocks_may_be_missing_but_not_all() -> None:
    assert outcome(1.0, look(4)) is Found.CONFIRMED  # 6 whole blocks, lookahead takes two
    assert outcome(1.0, look(1), tokens=20) is Found.CONFIRMED
    assert outcome(1.0, look(0), tokens=20) is None


def test_before_its_time_nothing_is_held_against_a_pod() -> None:
    assert outcome(DEADLINE_S - 0.1, look(0)) is None
    assert outcome(DEADLINE_S - 0.1, look(3)) is None


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (look(0), Found.UNCONFIRMED),
        (look(3), Found.PARTLY),
        (look(0, sequence=7), Found.SILENT),
        (look(0, sequence=None), Found.SILENT),
    ],
)
def test_at_its_time_it_is_said_what_was_missing(seen: Look, expected: Found) -> None:
    assert outcome(DEADLINE_S, seen) is expected


def test_a_source_that_is_not_believed_shows_nothing() -> None:
    assert outcome(1.0, look(0, believed=False)) is Found.VOID
    assert outcome(1.0, look(0, size=128)) is Found.VOID  # no whole block of that size


def test_a_settled_promise_is_gone_and_others_stay() -> None:
    promises = Promises()
    promises.take(promise(), 0.0)
    promises.take(promise(source=2), 1.0)
    assert promises.due(FIRST_LOOK_S - 0.1) == []
    first, *others = promises.due(1.0)
    assert others == []
    promises.settle(first, look(6), 1.0)
    assert len(promises) == 1


def test_a_source_that_is_emptied_takes_its_promises_along() -> None:
    promises = Promises()
    promises.take(promise(source=1), 0.0)
    promises.take(promise(source=2), 0.0)
    promises.dropped(1)
    assert [gone.promise.source for gone in promises.void()] == [1]
    assert promises.void() == []
    assert [one.promise.source for one in promises.due(1.0)] == [2]


def test_a_bounded_number_is_looked_at() -> None:
    promises = Promises()
    assert sum(promises.take(promise(), 0.0) for _ in range(1000)) == BURST
    assert not promises.has_room(0.1)
    taken = sum(promises.take(promise(), float(second)) for second in range(1, 100))
    assert taken == MAX_PENDING - BURST


def test_a_long_rest_gives_no_more_than_one_burst() -> None:
    promises = Promises()
    for _ in range(BURST):
        promises.take(promise(), 0.0)
    for one in promises.due(1.0):
        promises.settle(one, look(6), 1.0)
    assert sum(promises.take(promise(), 1e6) for _ in range(1000)) == BURST


def test_short_and_very_long_prompts_are_left_out() -> None:
    promises = Promises()
    assert not promises.take(promise(tokens=15), 0.0)
    assert not promises.take(promise(tokens=MAX_TOKENS + 1), 0.0)


def test_salt_and_adapter_are_judged_apart() -> None:
    assert promise().kind is Kind.PLAIN
    assert promise(adapter="ad").kind is Kind.ADAPTER
    assert promise(adapter="ad", salt="s").kind is Kind.SALTED
